// YAML at the edge: Yams' node tree becomes the core's document, strictly. Aliases are not
// followed (a small file could grow without bound), and scalars keep YAML's plain meaning: only
// what looks like a whole number, a boolean or null is one.

package import TollgateCore
import Yams

package enum YAMLReader {
  /// A configuration or catalog file is at most this large.
  package static let bytesMax = 4 << 20

  package static func document(_ text: String) throws(InvalidDocument) -> Document {
    guard text.utf8.count <= bytesMax else {
      throw problem("the file", "is larger than \(bytesMax) bytes")
    }
    let node: Node?
    do {
      node = try Yams.compose(yaml: text)
    } catch {
      throw problem("the file", "is not YAML: \(error)")
    }
    guard let node else { return .object([]) }
    return try convert(node, depth: 0)
  }

  private static func problem(_ path: String, _ reason: String) -> InvalidDocument {
    InvalidDocument(problems: [Problem(path: path, value: "", reason: reason)])
  }

  private static func convert(_ node: Node, depth: Int) throws(InvalidDocument) -> Document {
    guard depth < Document.depthMax else { throw problem("the file", "is nested too deeply") }
    switch node {
    case .scalar(let scalar): return self.scalar(scalar)
    case .sequence(let sequence):
      var values: [Document] = []
      for element in sequence { values.append(try convert(element, depth: depth + 1)) }
      return .list(values)
    case .mapping(let mapping):
      var members: [Document.Member] = []
      for (key, value) in mapping {
        guard case .scalar(let name) = key else { throw problem("a key", "is not text") }
        members.append(.init(name.string, try convert(value, depth: depth + 1)))
      }
      return .object(members)
    case .alias: throw problem("the file", "aliases are not followed; write the value out")
    }
  }

  private static func scalar(_ scalar: Node.Scalar) -> Document {
    guard scalar.style == .plain || scalar.style == .any else { return .string(scalar.string) }
    switch scalar.string {
    case "", "~", "null", "Null", "NULL": return .null
    case "true", "True", "TRUE", "on", "On", "ON", "yes", "Yes", "YES": return .bool(true)
    case "false", "False", "FALSE", "off", "Off", "OFF", "no", "No", "NO": return .bool(false)
    default: break
    }
    let digits = scalar.string.filter { $0 != "_" }
    if let integer = Int64(digits) { return .integer(integer) }
    if Double(scalar.string) != nil { return .number(scalar.string) }
    return .string(scalar.string)
  }
}
