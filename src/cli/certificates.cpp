#include "tls/certificates.h"

#include <fmt/core.h>

#include <memory>

#include "cli/command.h"

namespace godwit::cli {
namespace {

struct CertificateOptions {
  std::string authority, cluster = "default", node, out;
};

int init(const CertificateOptions& options) {
  if (tls::load_authority(options.authority).ok())
    return complain(absl::AlreadyExistsError(fmt::format(
        "{} holds an authority already; a new one would lock every node out", options.authority)));
  const auto authority = tls::make_authority(options.cluster);
  if (!authority.ok()) return complain(authority.status());
  const absl::Status saved = tls::save_authority(options.authority, *authority);
  return saved.ok() ? 0 : complain(saved);
}

int issue(const CertificateOptions& options) {
  const auto authority = tls::load_authority(options.authority);
  if (!authority.ok()) return complain(authority.status());
  const auto own = tls::issue_certificate(*authority, options.node);
  if (!own.ok()) return complain(own.status());
  const absl::Status saved = tls::save_identity(options.out, {authority->certificate_pem, *own});
  return saved.ok() ? 0 : complain(saved);
}

}  // namespace

void add_certificates(CLI::App& app, Context& context) {
  auto options = std::make_shared<CertificateOptions>();
  CLI::App* command =
      app.add_subcommand("certificates", "make the keys by which nodes know each other")
          ->group(kCluster);
  command->require_subcommand(1);
  command->footer(
      "Once for the cluster, in a place that stays private, then once for each node:\n\n"
      "  godwit certificates init /root/godwit-ca\n"
      "  godwit certificates issue /root/godwit-ca n1 n1-tls\n\n"
      "Copy n1-tls to the node as <its state folder>/tls. Whoever holds such a folder is a node\n"
      "of the cluster and may do everything.");
  CLI::App* first = command->add_subcommand("init", "make an authority");
  first->add_option("AUTHORITY", options->authority, "folder to make")->required();
  first->add_option("--cluster", options->cluster, "name for people")->capture_default_str();
  first->callback([&context, options] { context.exit_code = init(*options); });
  CLI::App* second = command->add_subcommand("issue", "make one node's certificate");
  second->add_option("AUTHORITY", options->authority, "folder of the authority")->required();
  second->add_option("NODE", options->node, "the node's name")->required();
  second->add_option("FOLDER", options->out, "folder to make")->required();
  second->callback([&context, options] { context.exit_code = issue(*options); });
}

}  // namespace godwit::cli
