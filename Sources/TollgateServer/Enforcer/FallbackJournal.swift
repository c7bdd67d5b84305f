// The file behind the fallback queue: lines of `checksum json`, appended with one write each and
// truncated when everything in it is posted. It is written only while Redis is away, so its cost
// is not on the usual path. A torn last line (the process died inside the write) fails its
// checksum and is dropped: its answer was never given, because the write comes before the answer.
// The file is locked: two sidecars on one journal would post each other's entries.

import Glibc
import TollgateCore

struct FallbackJournal: ~Copyable {
  struct Failure: Error, CustomStringConvertible {
    let description: String
  }

  private let descriptor: Int32
  var recovered: [FallbackOperation] = []
  /// Lines that could not be read, reported once at start.
  private(set) var damagedLines = 0

  init(path: String) throws(Failure) {
    let descriptor = unsafe open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else {
      throw Failure(description: "journal \(path): cannot be opened (errno \(errno))")
    }
    guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
      close(descriptor)
      throw Failure(description: "journal \(path): another process holds it")
    }
    self.descriptor = descriptor
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 64 * 1024)
    while true {
      let count = unsafe read(descriptor, &chunk, chunk.count)
      guard count > 0 else { break }
      bytes.append(contentsOf: chunk[..<count])
    }
    for line in bytes.split(separator: 0x0A) {
      if let operation = Self.decode(line) {
        recovered.append(operation)
      } else {
        damagedLines += 1
      }
    }
  }

  deinit { close(descriptor) }

  mutating func append(_ operation: FallbackOperation) -> Bool {
    let line = Self.encode(operation)
    var offset = 0
    while offset < line.count {
      let written = unsafe line.withUnsafeBytes { buffer in
        unsafe write(descriptor, buffer.baseAddress.map { unsafe $0 + offset }, line.count - offset)
      }
      if written < 0 && errno == EINTR { continue }
      guard written > 0 else { return false }
      offset += written
    }
    return true
  }

  mutating func reset() { _ = ftruncate(descriptor, 0) }

  static func encode(_ operation: FallbackOperation) -> [UInt8] {
    let document = Document.fields([
      "id": .string(operation.id.hex), "subject": .string(operation.subject.path),
      "items": .list(
        operation.items.map { [.string($0.feature.text), .integer($0.amount)] }),
      "attributes": .object(
        operation.attributes.sorted { $0.key < $1.key }.map { .init($0.key, .string($0.value)) }),
      "trace": .string(operation.traceParent),
    ])
    let json = document.json()
    return Array("\(StableHash.of(json)) \(json)\n".utf8)
  }

  static func decode(_ line: ArraySlice<UInt8>) -> FallbackOperation? {
    guard let space = line.firstIndex(of: 0x20) else { return nil }
    let json = String(decoding: line[line.index(after: space)...], as: UTF8.self)
    guard String(decoding: line[..<space], as: UTF8.self) == "\(StableHash.of(json))",
      let document = try? Document(json: json),
      case .string(let hex)? = document["id"], let id = OperationID(hex: hex),
      case .string(let path)? = document["subject"], let subject = try? Subject(path),
      case .list(let entries)? = document["items"]
    else { return nil }
    var items: [Item] = []
    for entry in entries {
      guard case .list(let pair) = entry, pair.count == 2, case .string(let text) = pair[0],
        case .integer(let amount) = pair[1], let feature = try? Name(text)
      else { return nil }
      items.append(Item(feature: feature, amount: amount))
    }
    var attributes: [String: String] = [:]
    if case .object(let members)? = document["attributes"] {
      for member in members {
        if case .string(let value) = member.value { attributes[member.key] = value }
      }
    }
    var trace = ""
    if case .string(let text)? = document["trace"] { trace = text }
    return FallbackOperation(
      id: id, subject: subject, items: items, attributes: attributes, traceParent: trace)
  }
}
