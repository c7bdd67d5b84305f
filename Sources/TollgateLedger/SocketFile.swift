// The file of a Unix socket. One that nobody listens on is left over from a killed process and is
// cleared away; one that somebody does belongs to a living process, and is never taken from it,
// neither when another starts on the same path nor when another stops.

internal import Glibc

/// The socket this process bound.
struct SocketFile: Sendable {
  private let path: String
  /// Device, inode and the time of its last change: an inode's number alone is used again at once.
  private let identity: [Int64]

  private init?(at path: String) {
    var status = stat()
    guard unsafe lstat(path, &status) == 0 else { return nil }
    self.path = path
    identity = [
      Int64(truncatingIfNeeded: status.st_dev), Int64(truncatingIfNeeded: status.st_ino),
      Int64(status.st_ctim.tv_sec), Int64(status.st_ctim.tv_nsec),
    ]
  }

  /// A bound socket, which the caller closes, and its file. Bound here, because a path given to NIO
  /// is removed when the socket is closed, whoever has it by then.
  static func bind(_ path: String) throws(LedgerError) -> (socket: CInt, file: SocketFile?) {
    try clear(path)
    let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    guard descriptor >= 0 else { throw .unusable("\(path): no socket (errno \(errno))") }
    guard
      let bound = unsafe withAddress(
        path, { unsafe Glibc.bind(descriptor, $0, $1) == 0 })
    else {
      close(descriptor)
      throw .unusable("\(path): the path of a Unix socket is shorter than 108 bytes")
    }
    guard bound else {
      let reason = errno
      close(descriptor)
      throw .unusable("\(path): cannot be bound (errno \(reason))")
    }
    return (descriptor, SocketFile(at: path))
  }

  /// Removes the file, unless another process has put its own in that place.
  func remove() {
    guard let now = SocketFile(at: path), now.identity == identity else { return }
    _ = unsafe unlink(path)
  }

  /// Makes room for a socket at `path`.
  private static func clear(_ path: String) throws(LedgerError) {
    var status = stat()
    guard unsafe lstat(path, &status) == 0 else { return }
    guard status.st_mode & S_IFMT == S_IFSOCK else {
      throw .unusable("\(path): exists and is not a socket")
    }
    guard !answers(path) else { throw .unusable("\(path): another process listens there") }
    _ = unsafe unlink(path)
  }

  private static func answers(_ path: String) -> Bool {
    let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
    guard descriptor >= 0 else { return false }
    defer { close(descriptor) }
    return unsafe withAddress(path) { unsafe connect(descriptor, $0, $1) == 0 } ?? false
  }

  /// nil: the path does not fit.
  private static func withAddress<Result>(
    _ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Result
  ) -> Result? {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let bytes = Array(path.utf8)
    guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { return nil }
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: bytes) }
    let length = socklen_t(MemoryLayout<sockaddr_un>.size)
    return unsafe withUnsafePointer(to: &address) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { unsafe body($0, length) }
    }
  }
}
