// The shim alone, for tests: the godwit binary has it as "godwit shim".
#include <string>
#include <vector>

#include "capsule/shim.h"

int main(int argc, char** argv) {
  return godwit::capsule::shim_main(std::vector<std::string>(argv + 1, argv + argc));
}
