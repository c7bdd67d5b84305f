// How far an import has come, beside its file: written before the first row is sent, because it
// holds the operation id under which rows are sent again, and after each batch that was answered.

import Foundation
import TollgateCore
import TollgateServer

struct ImportProgress: Codable, Equatable {
  var file: String
  /// Size and a hash of the first and last bytes: another file under this name is noticed.
  var bytes: Int64
  var content: String
  /// Every row before this one is answered.
  var rows: Int
  /// The id of the import: each row's own is derived from it.
  var operation: OperationID
  /// The counts of the rows before.
  var done: AccountImportReply

  static let failuresKept = 1000

  static func path(for file: String) -> String { file + ".progress" }

  static func read(for file: String) throws(CommandFailure) -> ImportProgress? {
    guard let data = FileManager.default.contents(atPath: path(for: file)) else { return nil }
    do throws(AdminFailure) {
      return try AdminJSON.decode(ImportProgress.self, from: [UInt8](data))
    } catch {
      // Beginning again by itself would forget the ids under which rows were sent.
      throw .usage(
        "\(path(for: file)) cannot be read: \(error.problems.first?.description ?? error.message)",
        fix: "pass --restart to begin again; rows that are as asked are passed over")
    }
  }

  static func size(of file: String) -> Int64 {
    let attributes = try? FileManager.default.attributesOfItem(atPath: file)
    return (attributes?[.size] as? NSNumber)?.int64Value ?? 0
  }

  /// Cheap, and enough to notice a file that was written anew.
  static func content(of file: String) -> String {
    guard let handle = FileHandle(forReadingAtPath: file) else { return "" }
    var hash = StableHash()
    let window = 1 << 16
    for start in [0, max(0, size(of: file) - Int64(window))] {
      try? handle.seek(toOffset: UInt64(start))
      for byte in (try? handle.read(upToCount: window)) ?? Data() { hash.combine(byte) }
    }
    return String(hash.value, radix: 16)
  }

  func write() throws(CommandFailure) {
    do throws(AdminFailure) {
      let body = try AdminJSON.encode(self)
      do {
        try Data(body).write(to: URL(fileURLWithPath: Self.path(for: file)), options: .atomic)
      } catch {
        throw AdminFailure(
          .unavailable, "\(Self.path(for: file)) cannot be written: \(error.localizedDescription)",
          fix: "make the folder writable, or pass --no-progress-file")
      }
    } catch {
      throw CommandFailure(error)
    }
  }

  static func remove(for file: String) {
    try? FileManager.default.removeItem(atPath: path(for: file))
  }
}
