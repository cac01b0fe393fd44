// Threads that change their process's mappings all the time, at thousands of places, and check that
// each page holds what they wrote there.
#ifndef GODWIT_TESTS_SUBJECTS_MAP_CHANGER_H_
#define GODWIT_TESTS_SUBJECTS_MAP_CHANGER_H_

#include <cstdint>

// Never returns. A wrong page, or a call that fails, aborts the process.
[[noreturn]] void change_maps(uint64_t seed);

#endif  // GODWIT_TESTS_SUBJECTS_MAP_CHANGER_H_
