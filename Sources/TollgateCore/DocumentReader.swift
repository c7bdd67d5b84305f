// Reading a typed value out of a document, strictly, and naming everything that is wrong with it
// at once: key, value and reason (DESIGN 9). A `DocumentNode` is a place in the document; asking
// it for something it is not adds a problem and answers nil, and reading goes on elsewhere.

/// One thing wrong with a document.
package struct Problem: Error, Hashable, Sendable, CustomStringConvertible {
  /// Where: keys and list indices from the root, joined by `/`; empty for the root.
  package let path: String
  /// What stands there, cut short.
  package let value: String
  package let reason: String

  package init(path: String, value: String, reason: String) {
    self.path = path
    self.value = value
    self.reason = reason
  }

  package var description: String { "\(path.isEmpty ? "(root)" : path): \(value): \(reason)" }

  package var document: Document {
    ["path": .string(path), "value": .string(value), "reason": .string(reason)]
  }
}

/// Thrown by `init(document:)` of types that are not read by people's hands alone.
package struct InvalidDocument: Error, Hashable, Sendable, CustomStringConvertible {
  package let problems: [Problem]

  package init(problems: [Problem]) { self.problems = problems }

  package var description: String { problems.map(\.description).joined(separator: "\n") }
}

/// The problems found so far. Bounded: a hostile document cannot make the report grow for ever.
package final class ProblemList {
  package static let problemsMax = 256
  package private(set) var problems: [Problem] = []
  package private(set) var dropped = 0

  package init() {}

  package var isEmpty: Bool { problems.isEmpty }

  package func add(_ problem: Problem) {
    if problems.count < Self.problemsMax { problems.append(problem) } else { dropped += 1 }
  }

  /// All of them, with a last line that says how many were left out.
  package var report: [Problem] {
    guard dropped > 0 else { return problems }
    return problems + [Problem(path: "", value: "\(dropped)", reason: "more problems")]
  }
}

package struct DocumentNode {
  package let value: Document
  package let path: String
  package let problems: ProblemList

  package init(_ value: Document, path: String = "", problems: ProblemList) {
    self.value = value
    self.path = path
    self.problems = problems
  }

  package func problem(_ reason: String) {
    problems.add(Problem(path: path, value: value.excerpt, reason: reason))
  }

  package func child(_ key: String, _ value: Document) -> DocumentNode {
    DocumentNode(value, path: path.isEmpty ? key : "\(path)/\(key)", problems: problems)
  }

  /// The members of an object with free keys (names), in order, each key once.
  package func members(max: Int) -> [(key: String, node: DocumentNode)]? {
    guard case .object(let members) = value else {
      problem("must be a mapping")
      return nil
    }
    guard members.count <= max else {
      problem("has \(members.count) entries; at most \(max) are allowed")
      return nil
    }
    var seen: Set<String> = []
    for member in members where !seen.insert(member.key).inserted {
      child(member.key, member.value).problem("the key appears twice")
    }
    return members.map { ($0.key, child($0.key, $0.value)) }
  }

  /// An object with fixed keys. Others are problems, and so is an absent required one.
  package func object(_ known: [String], required: [String] = []) -> DocumentFields? {
    guard let members = members(max: 4096) else { return nil }
    for (key, node) in members where !known.contains(key) {
      node.problem("unknown key; known here: \(known.joined(separator: ", "))")
    }
    for key in required where !members.contains(where: { $0.key == key }) {
      problems.add(
        Problem(path: child(key, .null).path, value: "absent", reason: "is required"))
    }
    return DocumentFields(node: self, members: members)
  }

  package func list(max: Int) -> [DocumentNode]? {
    guard case .list(let values) = value else {
      problem("must be a list")
      return nil
    }
    guard values.count <= max else {
      problem("has \(values.count) entries; at most \(max) are allowed")
      return nil
    }
    return values.enumerated().map { child("\($0.offset)", $0.element) }
  }

  package func integer(_ range: ClosedRange<Int64>) -> Int64? {
    guard case .integer(let integer) = value else {
      problem("must be a whole number from \(range.lowerBound) to \(range.upperBound)")
      return nil
    }
    guard range.contains(integer) else {
      problem("must be from \(range.lowerBound) to \(range.upperBound)")
      return nil
    }
    return integer
  }

  package func bool() -> Bool? {
    guard case .bool(let flag) = value else {
      problem("must be true or false")
      return nil
    }
    return flag
  }

  /// Text of at most `bytesMax` bytes without control characters.
  package func string(bytesMax: Int) -> String? {
    guard case .string(let text) = value else {
      problem("must be text")
      return nil
    }
    guard text.utf8.count <= bytesMax else {
      problem("is longer than \(bytesMax) bytes")
      return nil
    }
    guard !text.utf8.contains(where: { $0 < 0x20 || $0 == 0x7F }) else {
      problem("holds a control character")
      return nil
    }
    return text
  }

  package func name() -> Name? {
    guard case .string(let text) = value else {
      problem("must be a name (text; quote it where it looks like a number)")
      return nil
    }
    return name(text)
  }

  /// The name `text`, which stands at this place (as its value or as its key).
  package func name(_ text: String) -> Name? {
    do throws(InvalidName) {
      return try Name(text)
    } catch {
      problems.add(
        Problem(path: path, value: Document.string(text).excerpt, reason: error.reason))
      return nil
    }
  }

  package func subject() -> Subject? {
    guard case .string(let text) = value else {
      problem("must be a subject (text)")
      return nil
    }
    do throws(InvalidName) {
      return try Subject(text)
    } catch {
      problem(error.reason)
      return nil
    }
  }

  package func choice<Choice>(_: Choice.Type) -> Choice?
  where Choice: RawRepresentable<String> & CaseIterable {
    guard case .string(let text) = value, let choice = Choice(rawValue: text) else {
      problem("must be one of \(Choice.allCases.map(\.rawValue).joined(separator: ", "))")
      return nil
    }
    return choice
  }
}

package struct DocumentFields {
  package let node: DocumentNode
  fileprivate let members: [(key: String, node: DocumentNode)]

  /// The first member of this key that is not null: an explicit null counts as absent.
  package subscript(key: String) -> DocumentNode? {
    members.first { $0.key == key && $0.node.value != .null }?.node
  }
}
