// The golden vectors of proto/vectors, loaded.

import Foundation
import NIOCore

enum Hex {
  static func bytes(_ text: String) throws -> [UInt8] {
    let digits = text.utf8.filter { $0 != 0x20 }
    guard digits.count % 2 == 0 else { throw VectorError("an odd number of hex digits") }
    return try stride(from: 0, to: digits.count, by: 2).map { at in
      let pair = String(decoding: digits[at..<at + 2], as: UTF8.self)
      guard let byte = UInt8(pair, radix: 16) else { throw VectorError("no hex: \(pair)") }
      return byte
    }
  }

  static func text(_ bytes: [UInt8]) -> String {
    bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
  }
}

struct VectorError: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}

struct Vector: Decodable, Sendable {
  var name: String
  var kind: String?
  var hex: String
  var header: JSONValue?
  var fields: JSONValue?
  var error: JSONValue?
  var incomplete: Bool?
  var canonical: Bool?
  var frameBytesMax: Int?

  func bytes() throws -> [UInt8] { try Hex.bytes(hex) }
  var isFatal: Bool {
    if case .object(let error)? = error { return error["fatal"] == .bool(true) }
    return false
  }
}

enum Repository {
  static let root = URL(fileURLWithPath: #filePath)
    .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

  static func path(_ path: String) -> String { root.appendingPathComponent(path).path }

  static func text(_ path: String) throws -> String {
    try String(contentsOf: root.appendingPathComponent(path), encoding: .utf8)
  }

  static func vectors() throws -> [Vector] {
    let folder = root.appendingPathComponent("proto/vectors")
    let files = try FileManager.default.contentsOfDirectory(
      at: folder, includingPropertiesForKeys: nil
    ).filter { $0.pathExtension == "json" }.sorted { $0.path < $1.path }
    return try files.flatMap { try JSONDecoder().decode([Vector].self, from: Data(contentsOf: $0)) }
  }
}
