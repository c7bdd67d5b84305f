// The data path's listening sockets over NIO alone (`local_loops: 0`; otherwise LocalLoops.swift):
// one Unix socket and one TCP port, both optional, both local.
// Accepted connections are spread over the event loops; each loop's connections, enforcer and
// Redis link live on that loop alone.

import Glibc
import Logging
import NIOCore
import NIOPosix
import TollgateCore

struct ListenFailure: Error, CustomStringConvertible {
  let description: String
}

enum Listener {
  static func bind(
    _ configuration: ServerConfiguration, group: any EventLoopGroup,
    sessions: [SessionUnit]
  ) async throws -> [any Channel] {
    var channels: [any Channel] = []
    if let path = configuration.listenUnix {
      try removeStaleSocket(path)
      let channel = try await bootstrap(group, sessions, readsPeer: true)
        .bind(unixDomainSocketPath: path).get()
      try setMode(path, configuration.unixMode)
      channels.append(channel)
    }
    if case .tcp(let host, let port)? = configuration.listenTCP {
      channels.append(
        try await Self.bound("listen.tcp", "\(host):\(port)") {
          try await bootstrap(group, sessions, readsPeer: false).bind(host: host, port: port).get()
        })
    }
    return channels
  }

  /// Names the key and the address of what cannot be bound.
  static func bound(
    _ key: String, _ address: String, _ bind: () async throws -> any Channel
  ) async throws -> any Channel {
    do {
      return try await bind()
    } catch let error as IOError {
      throw ListenFailure(
        description: "\(key): \(address) cannot be bound: "
          + (error.errnoCode == EADDRINUSE ? "it is in use" : "errno \(error.errnoCode)"))
    }
  }

  private static func bootstrap(
    _ group: any EventLoopGroup, _ sessions: [SessionUnit],
    readsPeer: Bool
  ) -> ServerBootstrap {
    let contexts = Dictionary(
      uniqueKeysWithValues: sessions.map { (ObjectIdentifier($0.eventLoop), $0) })
    return ServerBootstrap(group: group)
      .serverChannelOption(.backlog, value: 1024)
      .serverChannelOption(.socketOption(.so_reuseaddr), value: readsPeer ? 0 : 1)
      .childChannelOption(.maxMessagesPerRead, value: 4)
      .childChannelOption(.writeBufferWaterMark, value: .init(low: 256 << 10, high: 4 << 20))
      .childChannelInitializer { channel in
        guard let context = contexts[ObjectIdentifier(channel.eventLoop)] else {
          return channel.close()
        }
        if !readsPeer, let tcp = channel as? any SocketOptionProvider {
          _ = tcp.setTCPNoDelay()
        }
        guard readsPeer, let provider = channel as? any SocketOptionProvider else {
          return channel.eventLoop.makeCompletedFuture {
            try channel.pipeline.syncOperations.addHandler(
              ChannelTransport(Conversation(shared: context.value, peerUID: nil)))
          }
        }
        let peer: EventLoopFuture<PeerCredentials> = provider.unsafeGetSocketOption(
          level: .socket, name: .init(rawValue: SO_PEERCRED))
        return peer.flatMapThrowing { credentials in
          try channel.pipeline.syncOperations.addHandler(
            ChannelTransport(
              Conversation(shared: context.value, peerUID: credentials.uid)))
        }
      }
  }

  static func setMode(_ path: String, _ mode: UInt32) throws(ListenFailure) {
    guard unsafe chmod(path, mode) == 0 else {
      throw ListenFailure(description: "\(path): mode cannot be set (errno \(errno))")
    }
  }

  static func removeSocket(_ path: String) { _ = unsafe unlink(path) }

  /// A socket file that nobody listens on is left over from a killed process; one that somebody
  /// does is a second sidecar on the same path, and that is refused.
  static func removeStaleSocket(_ path: String) throws(ListenFailure) {
    var status = stat()
    guard unsafe lstat(path, &status) == 0 else { return }
    guard status.st_mode & S_IFMT == S_IFSOCK else {
      throw ListenFailure(description: "\(path): exists and is not a socket")
    }
    if answers(path) {
      throw ListenFailure(description: "\(path): another process listens there")
    }
    _ = unsafe unlink(path)
  }

  private static func answers(_ path: String) -> Bool {
    let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
    guard descriptor >= 0 else { return false }
    defer { close(descriptor) }
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let bytes = Array(path.utf8)
    let room = MemoryLayout.size(ofValue: address.sun_path)
    guard bytes.count < room else { return false }
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: bytes) }
    let length = socklen_t(MemoryLayout<sockaddr_un>.size)
    return unsafe withUnsafePointer(to: &address) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        unsafe connect(descriptor, $0, length) == 0
      }
    }
  }
}

/// `struct ucred` of <sys/socket.h>, which the C module does not show.
private struct PeerCredentials: Sendable {
  var pid: Int32 = 0
  var uid: UInt32 = 0
  var gid: UInt32 = 0
}

extension SocketOptionProvider {
  fileprivate func setTCPNoDelay() -> EventLoopFuture<Void> {
    unsafeSetSocketOption(level: .tcp, name: .tcp_nodelay, value: Int32(1))
  }
}
