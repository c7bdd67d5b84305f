// The few socket calls the harness needs, as functions over file descriptors.
//
// The harness has no NIO on purpose: it must be able to judge code that uses NIO, and a fault
// proxy on its own thread is not slowed by the event loops it disturbs. Every descriptor is
// close-on-exec, so that no child keeps a listener or a connection of the test alive.

internal import Glibc

/// A POSIX call that failed, with its errno.
package struct PosixError: Error, CustomStringConvertible {
  package let call: String
  package let code: Int32

  package init(call: String, code: Int32 = errno) {
    self.call = call
    self.code = code
  }

  package var description: String {
    "\(call): \(unsafe strerror(code).map { unsafe String(cString: $0) } ?? "") (errno \(code))"
  }
}

/// Where a server listens.
package enum TestEndpoint: Sendable, Hashable, CustomStringConvertible {
  case unix(String)
  /// A numeric IPv4 address and a port; port 0 asks the kernel for one.
  case tcp(String, UInt16)

  package var description: String {
    switch self {
    case .unix(let path): "unix:\(path)"
    case .tcp(let host, let port): "\(host):\(port)"
    }
  }

  /// The port, for a TCP endpoint.
  package var port: UInt16? {
    if case .tcp(_, let port) = self { port } else { nil }
  }
}

package enum Socket {
  /// A blocking, connected stream socket.
  package static func connect(_ endpoint: TestEndpoint) throws -> Int32 {
    let fd = try open(endpoint)
    let result = try unsafe withAddress(endpoint) { unsafe Glibc.connect(fd, $0, $1) }
    if result != 0 {
      let code = errno
      close(fd)
      throw PosixError(call: "connect \(endpoint)", code: code)
    }
    return fd
  }

  /// A listening, non-blocking socket. A stale Unix socket file is replaced.
  package static func listen(_ endpoint: TestEndpoint) throws -> Int32 {
    let fd = try open(endpoint)
    if case .unix(let path) = endpoint { unsafe unlink(path) }
    var on: Int32 = 1
    unsafe setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, socklen_t(MemoryLayout<Int32>.size))
    let bound = try unsafe withAddress(endpoint) { unsafe bind(fd, $0, $1) }
    guard bound == 0, Glibc.listen(fd, 512) == 0 else {
      let code = errno
      close(fd)
      throw PosixError(call: "listen \(endpoint)", code: code)
    }
    setNonBlocking(fd)
    return fd
  }

  /// The port a TCP listener got.
  package static func localPort(_ fd: Int32) -> UInt16 {
    var address = sockaddr_in()
    var length = socklen_t(MemoryLayout<sockaddr_in>.size)
    unsafe withUnsafeMutablePointer(to: &address) { pointer in
      _ = unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        unsafe getsockname(fd, $0, &length)
      }
    }
    return UInt16(bigEndian: address.sin_port)
  }

  package static func close(_ fd: Int32) { _ = Glibc.close(fd) }

  /// Closes with a reset, so that the peer sees a broken connection and not a clean end.
  package static func reset(_ fd: Int32) {
    var linger = linger(l_onoff: 1, l_linger: 0)
    unsafe setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, socklen_t(MemoryLayout<linger>.size))
    close(fd)
  }

  package static func setNonBlocking(_ fd: Int32) {
    _ = fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK)
  }

  package static func setCloseOnExec(_ fd: Int32) { _ = fcntl(fd, F_SETFD, FD_CLOEXEC) }

  /// One read: the bytes, empty at the end of the stream, nil where it would block.
  package static func read(_ fd: Int32, max: Int = 65_536) throws -> [UInt8]? {
    var failure: Int32 = 0
    let bytes = unsafe [UInt8](unsafeUninitializedCapacity: max) { buffer, count in
      var result: Int
      repeat {
        result = unsafe recv(fd, buffer.baseAddress, max, 0)
      } while result < 0
        && errno == EINTR
      if result < 0 { failure = errno }
      count = Swift.max(result, 0)
    }
    if failure == EAGAIN || failure == EWOULDBLOCK { return nil }
    if failure != 0 { throw PosixError(call: "recv", code: failure) }
    return bytes
  }

  /// One write: how many bytes were taken, 0 where it would block.
  package static func write(_ fd: Int32, _ bytes: ArraySlice<UInt8>) throws -> Int {
    let result = unsafe bytes.withUnsafeBytes { buffer in
      var result: Int
      repeat {
        result = unsafe send(fd, buffer.baseAddress, buffer.count, Int32(MSG_NOSIGNAL))
      } while result < 0 && errno == EINTR
      return result
    }
    if result >= 0 { return result }
    if errno == EAGAIN || errno == EWOULDBLOCK { return 0 }
    throw PosixError(call: "send")
  }

  /// Waits until `fd` has one of `events`; false at the deadline.
  package static func wait(_ fd: Int32, for events: Int32, milliseconds: Int) -> Bool {
    var entry = pollfd(fd: fd, events: Int16(events), revents: 0)
    var result: Int32
    repeat {
      result = unsafe poll(&entry, 1, Int32(clamping: milliseconds))
    } while result < 0 && errno == EINTR
    return result > 0
  }

  private static func open(_ endpoint: TestEndpoint) throws -> Int32 {
    let family =
      switch endpoint {
      case .unix: AF_UNIX
      case .tcp: AF_INET
      }
    let type = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
    let fd = socket(family, type, 0)
    guard fd >= 0 else { throw PosixError(call: "socket") }
    if family == AF_INET {
      var on: Int32 = 1
      let size = socklen_t(MemoryLayout<Int32>.size)
      unsafe setsockopt(fd, Int32(IPPROTO_TCP), TCP_NODELAY, &on, size)
    }
    return fd
  }

  private static func withAddress(
    _ endpoint: TestEndpoint, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32
  ) throws -> Int32 {
    switch endpoint {
    case .unix(let path):
      var address = sockaddr_un()
      address.sun_family = sa_family_t(AF_UNIX)
      let bytes = Array(path.utf8)
      guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else {
        throw PosixError(call: "unix socket path \(path)", code: ENAMETOOLONG)
      }
      unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: bytes) }
      return unsafe withUnsafePointer(to: &address) { pointer in
        unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          unsafe body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
        }
      }
    case .tcp(let host, let port):
      var address = sockaddr_in()
      address.sin_family = sa_family_t(AF_INET)
      address.sin_port = port.bigEndian
      guard unsafe inet_pton(AF_INET, host, &address.sin_addr) == 1 else {
        throw PosixError(call: "address \(host)", code: EINVAL)
      }
      return unsafe withUnsafePointer(to: &address) { pointer in
        unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          unsafe body($0, socklen_t(MemoryLayout<sockaddr_in>.size))
        }
      }
    }
  }
}
