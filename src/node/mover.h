// The mover: the process that carries out one side of one migration (ARCHITECTURE.md, processes).
// `godwit mover`, descriptor 3 is its daemon.
#ifndef GODWIT_NODE_MOVER_H_
#define GODWIT_NODE_MOVER_H_

namespace godwit::node {

int mover_main(int argc, char** argv);

}  // namespace godwit::node

#endif  // GODWIT_NODE_MOVER_H_
