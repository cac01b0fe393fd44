// One rtnetlink request being built: RAII around libnl's message, with nested attributes as scopes.
// Private to this folder.
#ifndef GODWIT_NETWORK_NETLINK_MESSAGE_H_
#define GODWIT_NETWORK_NETLINK_MESSAGE_H_

#include <netlink/attr.h>
#include <netlink/msg.h>

#include <string>

#include "network/ip.h"

namespace godwit::network {

class Request {
 public:
  template <typename Header>
  Request(int type, int flags, const Header& header)
      : message_(::nlmsg_alloc_simple(type, NLM_F_REQUEST | flags)) {
    Header copy = header;
    ::nlmsg_append(message_, &copy, sizeof copy, NLMSG_ALIGNTO);
  }
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;
  ~Request() { ::nlmsg_free(message_); }

  nl_msg* get() { return message_; }
  // nla_put fails only when the message's page is full, which no request here comes near.
  void put_u8(int type, uint8_t value) { ::nla_put_u8(message_, type, value); }
  void put_u16(int type, uint16_t value) { ::nla_put_u16(message_, type, value); }
  void put_u32(int type, uint32_t value) { ::nla_put_u32(message_, type, value); }
  void put(int type, const std::string& value) { ::nla_put_string(message_, type, value.c_str()); }
  void put(int type, const MacAddress& mac) {
    ::nla_put(message_, type, static_cast<int>(mac.bytes.size()), mac.bytes.data());
  }
  void put(int type, const IpAddress& ip) {
    ::nla_put(message_, type, static_cast<int>(ip.size()), ip.bytes.data());
  }
  template <typename Struct>
  void put_struct(const Struct& value) {
    Struct copy = value;
    ::nlmsg_append(message_, &copy, sizeof copy, NLMSG_ALIGNTO);
  }

  class Nest {
   public:
    Nest(Request& request, int type)
        : message_(request.message_), start_(::nla_nest_start(message_, type)) {}
    Nest(const Nest&) = delete;
    Nest& operator=(const Nest&) = delete;
    ~Nest() { ::nla_nest_end(message_, start_); }

   private:
    nl_msg* message_;
    nlattr* start_;
  };

 private:
  nl_msg* message_;
};

}  // namespace godwit::network

#endif  // GODWIT_NETWORK_NETLINK_MESSAGE_H_
