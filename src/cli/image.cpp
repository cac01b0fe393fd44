#include <fcntl.h>
#include <fmt/core.h>

#include <memory>

#include "absl/time/time.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "cli/command.h"
#include "cli/image_render.h"
#include "stream/sealed.h"

namespace godwit::cli {
namespace {

struct ImageOptions {
  std::string file, key_file;
  bool json = false, verbose = false;
};

int show(const ImageOptions& options) {
  UniqueFd fd(::open(options.file.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return complain(errno_status(errno, fmt::format("open({})", options.file)));
  const auto feed = stream::image_feed(fd.get(), options.key_file);
  if (!feed.ok()) return complain(annotate(feed.status(), options.file));
  const absl::StatusOr<Image> image = read_image(**feed);
  if (!image.ok()) return complain(annotate(image.status(), options.file));
  if (!options.json) {
    fmt::print("{}", image_text(*image, options.verbose));
    return 0;
  }
  Json json;
  image_json(json, *image);
  fmt::print("{}", json.str());
  return 0;
}

}  // namespace

void add_image(CLI::App& app, Context& context) {
  auto options = std::make_shared<ImageOptions>();
  CLI::App* command = app.add_subcommand("image", "look into checkpoints")->group(kMoving);
  command->require_subcommand(1);
  CLI::App* sub = command->add_subcommand("show", "print what is in a checkpoint file");
  sub->add_option("FILE", options->file, "made by checkpoint; no daemon is asked")->required();
  sub->add_option("--decrypt", options->key_file, "the key file that it was encrypted with");
  sub->add_flag("--json", options->json, "one object");
  sub->add_flag("-v,--verbose", options->verbose, "every thread and every mapping");
  sub->footer(
      "All of the file is read and checked; one that is cut short, damaged or no checkpoint gives\n"
      "an error with the offset, and exit code 1.\n\n"
      "JSON fields: workload, created_unix_ns, version, bytes, complete, threads, sockets, "
      "epochs,\n"
      "processes (with threads, mappings, descriptors), vm (of a virtual machine, with its "
      "disks),\n"
      "kinds (bytes of state by kind of section).");
  sub->callback([&context, options] { context.exit_code = show(*options); });
}

}  // namespace godwit::cli
