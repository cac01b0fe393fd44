// A domain's serial console as a stream of libvirt's (virDomainOpenConsole).
#ifdef GODWIT_LIBVIRT
#include <atomic>

#include "base/status.h"
#include "vm/libvirt_hypervisor.h"

namespace godwit::vm {
namespace {

class StreamConsole final : public Hypervisor::Console {
 public:
  StreamConsole(const Libvirt& api, std::shared_ptr<Connection> connection, virStreamPtr stream)
      : api_(api), connection_(std::move(connection)), stream_(stream) {}
  ~StreamConsole() override {
    close();
    api_.virStreamFree(stream_);
  }
  absl::Status write(std::string_view bytes) override {
    while (!bytes.empty()) {
      const int sent = api_.virStreamSend(stream_, bytes.data(), bytes.size());
      if (sent < 0) return libvirt_error(api_, "writing to the console");
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> read() override {
    std::string bytes(4096, '\0');
    const int got = api_.virStreamRecv(stream_, bytes.data(), bytes.size());
    if (got < 0) {
      if (closed_) return std::string();
      return libvirt_error(api_, "reading the console");
    }
    bytes.resize(static_cast<size_t>(got));
    return bytes;
  }
  void close() override {
    if (!closed_.exchange(true)) api_.virStreamAbort(stream_);
  }

 private:
  const Libvirt& api_;
  std::shared_ptr<Connection> connection_;
  virStreamPtr stream_;
  std::atomic<bool> closed_ = false;
};

}  // namespace

absl::StatusOr<std::shared_ptr<Hypervisor::Console>> LibvirtHypervisor::console(
    const std::string& uuid) {
  // Its own: a stream that blocks would hold up the calls of others.
  GW_ASSIGN_OR_RETURN(const auto connected, Connection::open(api_, uri_of(socket_)));
  GW_ASSIGN_OR_RETURN(const Domain found, domain(*connected, uuid));
  const virStreamPtr stream = api_.virStreamNew(connected->get(), 0);
  if (stream == nullptr) return libvirt_error(api_, "virStreamNew()");
  auto console = std::make_shared<StreamConsole>(api_, connected, stream);
  if (api_.virDomainOpenConsole(found.get(), nullptr, stream, VIR_DOMAIN_CONSOLE_FORCE) != 0)
    return libvirt_error(api_, "virDomainOpenConsole()");
  return console;
}

}  // namespace godwit::vm
#endif
