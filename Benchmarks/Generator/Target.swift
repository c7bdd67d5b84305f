// Where a server listens, and a non-blocking connection to it.

internal import Glibc

package struct BenchError: Error, CustomStringConvertible {
  package let description: String

  package init(_ description: String) { self.description = description }

  static func system(_ what: String, _ code: Int32) -> BenchError {
    BenchError("\(what): \(unsafe String(cString: strerror(code)))")
  }
}

/// `unix:PATH`, a path with a slash, `tcp:HOST:PORT` or `HOST:PORT`; an IPv4 address or
/// `localhost`.
package enum Target: Hashable, Sendable, CustomStringConvertible {
  case unix(String)
  case tcp(String, UInt16)

  /// Bytes of a path that fits a Unix socket address.
  static let pathBytesMax = 107

  package init(_ text: String) throws {
    var rest = text[...]
    if rest.hasPrefix("unix:") || (rest.contains("/") && !rest.hasPrefix("tcp:")) {
      if rest.hasPrefix("unix:") { rest = rest.dropFirst(5) }
      while rest.hasPrefix("//") { rest = rest.dropFirst() }
      guard !rest.isEmpty, rest.utf8.count <= Self.pathBytesMax else {
        throw BenchError("\"\(text)\": a socket path has 1 to \(Self.pathBytesMax) bytes")
      }
      self = .unix(String(rest))
      return
    }
    if rest.hasPrefix("tcp:") { rest = rest.dropFirst(4) }
    while rest.hasPrefix("/") { rest = rest.dropFirst() }
    guard let colon = rest.lastIndex(of: ":"), let port = UInt16(rest[rest.index(after: colon)...])
    else { throw BenchError("\"\(text)\": write unix:PATH or HOST:PORT") }
    let host = rest[..<colon] == "localhost" ? "127.0.0.1" : String(rest[..<colon])
    var address = in_addr()
    guard unsafe inet_pton(AF_INET, host, &address) == 1 else {
      throw BenchError("\"\(text)\": the host must be an IPv4 address or localhost")
    }
    self = .tcp(host, port)
  }

  package var description: String {
    switch self {
    case .unix(let path): "unix:\(path)"
    case .tcp(let host, let port): "tcp:\(host):\(port)"
    }
  }

  /// A connected socket, or one that is still connecting (TCP, non-blocking).
  func connect(blocking: Bool) throws -> Int32 {
    let kind =
      Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
      | (blocking ? 0 : Int32(SOCK_NONBLOCK.rawValue))
    let descriptor = socket(family, kind, 0)
    guard descriptor >= 0 else { throw BenchError.system("socket", errno) }
    if case .tcp = self {
      var on: Int32 = 1
      unsafe setsockopt(
        descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, &on, socklen_t(MemoryLayout<Int32>.size))
    }
    let result = unsafe withAddress { unsafe Glibc.connect(descriptor, $0, $1) }
    if result != 0 && errno != EINPROGRESS {
      let code = errno
      Glibc.close(descriptor)
      throw BenchError.system("cannot connect to \(self)", code)
    }
    return descriptor
  }

  private var family: Int32 {
    if case .unix = self { AF_UNIX } else { AF_INET }
  }

  private func withAddress(
    _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32
  ) -> Int32 {
    switch self {
    case .unix(let path):
      var address = sockaddr_un()
      address.sun_family = sa_family_t(AF_UNIX)
      unsafe withUnsafeMutableBytes(of: &address.sun_path) { room in
        // The initializer bounded the length; the rest of the field is zero.
        unsafe room.copyBytes(from: path.utf8)
      }
      return unsafe withUnsafePointer(to: &address) { pointer in
        unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          unsafe body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
        }
      }
    case .tcp(let host, let port):
      var address = sockaddr_in()
      address.sin_family = sa_family_t(AF_INET)
      address.sin_port = port.bigEndian
      unsafe inet_pton(AF_INET, host, &address.sin_addr)
      return unsafe withUnsafePointer(to: &address) { pointer in
        unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          unsafe body($0, socklen_t(MemoryLayout<sockaddr_in>.size))
        }
      }
    }
  }

  /// The process at the other end of a Unix socket; nil elsewhere.
  package func peerProcess() -> Int32? {
    guard case .unix = self, let descriptor = try? connect(blocking: true) else { return nil }
    defer { Glibc.close(descriptor) }
    // struct ucred {pid, uid, gid}: three 32-bit words.
    var credential: (Int32, UInt32, UInt32) = (0, 0, 0)
    var length = socklen_t(12)
    let result = unsafe getsockopt(descriptor, SOL_SOCKET, SO_PEERCRED, &credential, &length)
    return result == 0 && credential.0 > 0 ? credential.0 : nil
  }
}
