// A private directory that goes away with its owner.
//
// The path is kept short (/tmp/tg-…), because a Unix socket address holds 107 bytes.

internal import Foundation
internal import NIOConcurrencyHelpers

/// Made with mode 0700; removed with all it holds by `remove()` or when the last owner goes.
package final class TemporaryDirectory: Sendable {
  package let path: String

  package init(_ label: String = "tg") throws {
    let name = "\(label)-" + String(UInt64.random(in: .min ... .max), radix: 36)
    path = "/tmp/\(name)"
    try FileManager.default.createDirectory(
      atPath: path, withIntermediateDirectories: false, attributes: [.posixPermissions: 0o700])
  }

  package func file(_ name: String) -> String { "\(path)/\(name)" }

  /// Writes a file and returns its path.
  @discardableResult
  package func write(_ name: String, _ contents: String) throws -> String {
    let target = file(name)
    try Data(contents.utf8).write(to: URL(fileURLWithPath: target))
    return target
  }

  /// Idempotent.
  package func remove() { try? FileManager.default.removeItem(atPath: path) }

  deinit { remove() }
}

private let portCursor = NIOLockedValueBox<UInt16>(0)

/// A loopback TCP port nothing listens on now. Taken from below the kernel's ephemeral range,
/// so that no outgoing connection can grab it before its user binds it, and never given twice by
/// one process.
package func freePort() throws -> UInt16 {
  let first: UInt16 = 20_000
  let count: UInt16 = 12_000
  for _ in 0..<count {
    let step = portCursor.withLockedValue { cursor in
      if cursor == 0 { cursor = UInt16(UInt32(getpid()) &* 197 % UInt32(count)) + 1 }
      cursor = cursor % count + 1
      return cursor - 1
    }
    let port = first + step
    if let probe = try? Socket.listen(.tcp("127.0.0.1", port)) {
      Socket.close(probe)
      return port
    }
  }
  throw PosixError(call: "freePort", code: EADDRINUSE)
}
