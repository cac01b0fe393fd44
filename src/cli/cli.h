// Commands of users.
#ifndef GODWIT_CLI_CLI_H_
#define GODWIT_CLI_CLI_H_

namespace godwit::cli {

int cli_main(int argc, char** argv);

}  // namespace godwit::cli

#endif  // GODWIT_CLI_CLI_H_
