// Opening the transport to Redis, for whatever handler talks over it.
//
// Why the handler joins only after the transport is open: a host name may race several addresses,
// each with its own channel.

import NIOCore
private import NIOPosix

extension RedisLinkConfiguration {
  /// Starts to open a connection to the endpoint; call on `eventLoop`. The handler is added when it
  /// is open, or `failed` says why it is not; also where the peer left before the handler was
  /// there.
  func open(
    on eventLoop: any EventLoop, for handler: some ChannelHandler,
    failed: @escaping (RedisCloseReason) -> Void
  ) {
    let bootstrap = ClientBootstrap(group: eventLoop)
      .connectTimeout(.nanoseconds(connectMax))
    let opened =
      switch endpoint {
      case .tcp(let host, let port): bootstrap.connect(host: host, port: port)
      case .unix(let path): bootstrap.connect(unixDomainSocketPath: path)
      }
    opened.hop(to: eventLoop).assumeIsolated().whenComplete { result in
      switch result {
      case .success(let channel):
        do {
          try channel.pipeline.syncOperations.addHandler(handler)
          if !channel.isActive { failed(.peerClosed) }
        } catch {
          channel.close(promise: nil)
          failed(.connectFailed(String(describing: error)))
        }
      case .failure(let error): failed(.connectFailed(String(describing: error)))
      }
    }
  }
}
