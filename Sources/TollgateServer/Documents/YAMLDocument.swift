// YAML at the edge: text in, Core's `Document` out, with the line of every place, so that a problem
// found by a reader further inside is shown where the person typed it. Scalars are read by the
// plain rules of YAML 1.2 (null, true, false, whole numbers with optional `_` between digits);
// `yes` and `on` are text, anything quoted is text, and a fraction keeps its spelling. Aliases are
// expanded, so the number of values is bounded: a few lines must not become a gigabyte.

package import TollgateCore
import Yams

package struct YAMLDocument: Sendable {
  package static let bytesMax = 1 << 20
  package static let valuesMax = 200_000

  package let document: Document
  /// Path (keys and indices joined by `/`, as in `Problem`) → line, from 1.
  package let lines: [String: Int]

  package init(yaml: String) throws(InvalidDocument) {
    guard yaml.utf8.count <= Self.bytesMax else {
      throw Self.invalid("the file", "is longer than \(Self.bytesMax) bytes")
    }
    let root: Node?
    do {
      root = try Yams.compose(yaml: yaml)
    } catch let error as YamlError {
      throw Self.invalid(error)
    } catch {
      throw Self.invalid("the file", "is not YAML: \(error)")
    }
    guard let root else { throw Self.invalid("the file", "is empty") }
    var converter = Converter()
    document = try converter.convert(root, path: "", depth: 1)
    lines = converter.lines
  }

  /// The line of a place; of the closest enclosing one where the place itself is not in the file
  /// (a key that is missing).
  package func line(of path: String) -> Int? {
    var path = path
    while true {
      if let line = lines[path] { return line }
      guard let slash = path.lastIndex(of: "/") else { return lines[""] }
      path = String(path[..<slash])
    }
  }

  static func invalid(_ value: String, _ reason: String) -> InvalidDocument {
    InvalidDocument(problems: [Problem(path: "", value: value, reason: reason)])
  }

  private static func invalid(_ error: YamlError) -> InvalidDocument {
    switch error {
    case .scanner(_, let problem, let mark, _), .parser(_, let problem, let mark, _),
      .composer(_, let problem, let mark, _):
      return invalid("line \(mark.line), column \(mark.column)", problem)
    case .duplicatedKeysInMapping(let duplicates, _):
      return invalid("the file", "a key appears twice: \(duplicates)")
    default: return invalid("the file", "is not YAML: \(error)")
    }
  }
}

private struct Converter {
  var lines: [String: Int] = [:]
  var values = 0

  mutating func convert(
    _ node: Node, path: String, depth: Int
  ) throws(InvalidDocument) -> Document {
    values += 1
    guard values <= YAMLDocument.valuesMax else {
      throw YAMLDocument.invalid("the file", "holds more than \(YAMLDocument.valuesMax) values")
    }
    guard depth <= Document.depthMax else {
      throw YAMLDocument.invalid(path, "is nested deeper than \(Document.depthMax)")
    }
    if let mark = node.mark, lines[path] == nil { lines[path] = mark.line }
    switch node {
    case .scalar(let scalar): return Self.value(of: scalar)
    case .sequence(let sequence):
      var elements: [Document] = []
      for (index, element) in sequence.enumerated() {
        elements.append(
          try convert(element, path: join(path, "\(index)"), depth: depth + 1))
      }
      return .list(elements)
    case .mapping(let mapping):
      var members: [Document.Member] = []
      for (key, value) in mapping {
        guard case .scalar(let scalar) = key else {
          throw YAMLDocument.invalid(path, "has a key that is not plain text")
        }
        let place = join(path, scalar.string)
        if let mark = key.mark { lines[place] = mark.line }
        members.append(
          Document.Member(
            scalar.string, try convert(value, path: place, depth: depth + 1)))
      }
      return .object(members)
    case .alias:
      throw YAMLDocument.invalid(path, "refers to an anchor that is not known")
    }
  }

  private func join(_ path: String, _ key: String) -> String {
    path.isEmpty ? key : "\(path)/\(key)"
  }

  private static func value(of scalar: Node.Scalar) -> Document {
    let text = scalar.string
    guard scalar.style == .plain || scalar.style == .any else { return .string(text) }
    switch text {
    case "", "~", "null", "Null", "NULL": return .null
    case "true", "True", "TRUE": return true
    case "false", "False", "FALSE": return false
    default: return number(text) ?? .string(text)
    }
  }

  /// nil where the text is no number at all.
  private static func number(_ text: String) -> Document? {
    let body = text.first == "-" || text.first == "+" ? text.dropFirst() : text[...]
    guard let first = body.utf8.first, first >= 0x30, first <= 0x39 else { return nil }
    var digits = ""
    var whole = true
    for byte in body.utf8 {
      switch byte {
      case 0x30...0x39: digits.unicodeScalars.append(Unicode.Scalar(byte))
      case 0x5F: guard body.utf8.last != 0x5F else { return nil }
      case 0x2E, 0x65, 0x45, 0x2B, 0x2D: whole = false
      default: return nil
      }
    }
    guard whole else { return looksLikeFraction(body) ? .number(text) : nil }
    // 007 is a name, not seven.
    guard digits == "0" || !digits.hasPrefix("0") else { return nil }
    guard let value = Int64(text.first == "-" ? "-" + digits : digits) else {
      return .number(text)
    }
    return .integer(value)
  }

  /// `1.5`, `2e3`; not `1.2.3` or `2026-11-21`.
  private static func looksLikeFraction(_ text: Substring) -> Bool {
    let parts = text.split(separator: ".", omittingEmptySubsequences: false)
    guard parts.count <= 2 else { return false }
    return Double(text) != nil
  }
}
