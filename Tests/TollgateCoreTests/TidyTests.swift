// Tidiness as a test: the arrows between targets and the rules of the house that a machine can
// check. Each finding names file, line and rule. The canary at the end proves that every rule
// can fail.

import Foundation
import Testing
import TollgateTesting

@Suite(.blocking) struct TidyTests {
  /// What each target may import. A target that is not listed here fails.
  static let arrows: [String: Set<String>] = {
    let system: Set = ["Foundation", "Glibc", "Darwin", "Dispatch", "Synchronization"]
    let nio: Set = ["NIOCore", "NIOPosix", "NIOConcurrencyHelpers"]
    let collections: Set = ["Collections", "DequeModule", "OrderedCollections", "HeapModule"]
    let core: Set = ["TollgateCore"]
    let wire: Set = ["TollgateCore", "TollgateWire"]
    let redis: Set = ["TollgateCore", "TollgateRedis"]
    return [
      "TollgateCore": [],
      "TollgateWire": core.union(["NIOCore"]),
      "TollgateRedis": core.union(nio).union(collections).union([
        "CHiredis", "Logging", "Synchronization", "Glibc",
      ]),
      "TollgateEngine": core.union(collections).union(["CPrefetch", "Glibc", "Darwin"]),
      "TollgateLedger": wire.union(nio).union(system).union([
        "TollgateEngine", "GRDB", "GRDBSQLite", "Logging",
      ]),
      "TollgateServer": wire.union(redis).union(nio).union(system).union(collections).union([
        "TollgateEngine", "TollgateLedger", "CEpoll", "CJemalloc", "NIOHTTP1", "Logging", "Yams",
      ]),
      "TollgateClient": wire.union(nio).union(system).union(collections),
      "tollgate": wire.union(redis).union(nio).union(system).union([
        "TollgateServer", "TollgateLedger", "TollgateClient", "TollgateBench", "ArgumentParser",
        "Logging", "Yams", "Histogram",
      ]),
      // An example shows what a backend sees: the public client and what it re-exports.
      "tollgate-example-editor": wire.union(nio).union(system).union(["TollgateClient"]),
      "TollgateTesting": system.union(["Testing", "NIOConcurrencyHelpers"]),
    ]
  }()

  static let linesMax = 600
  static let columnsMax = 100

  struct Source {
    let target: String
    let name: String
    let lines: [String]
  }

  static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
    .deletingLastPathComponent().deletingLastPathComponent()

  static func sources(in folder: String, of target: String? = nil) throws -> [Source] {
    let base = root.appendingPathComponent(folder)
    let names = try FileManager.default.subpathsOfDirectory(atPath: base.path)
    return try names.filter { $0.hasSuffix(".swift") }.sorted().map { name in
      let text = try String(contentsOf: base.appendingPathComponent(name), encoding: .utf8)
      let target = String(name.split(separator: "/").first ?? "")
      return Source(
        target: target, name: "\(folder)/\(name)",
        lines: text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init))
    }
  }

  static func importFindings(_ source: Source) -> [String] {
    guard let allowed = arrows[source.target] else {
      return ["\(source.name): no arrows are known for target \(source.target)"]
    }
    return source.lines.enumerated().compactMap { index, line in
      guard let module = importedModule(line), !allowed.contains(module) else { return nil }
      return "\(source.name):\(index + 1): \(source.target) must not import \(module)"
    }
  }

  static func importedModule(_ line: String) -> String? {
    var words = line.split(separator: " ")[...]
    let prefixes = ["public", "package", "internal", "fileprivate", "private"]
    while let first = words.first, first.hasPrefix("@") || prefixes.contains(String(first)) {
      words = words.dropFirst()
    }
    guard words.first == "import", var module = words.dropFirst().first else { return nil }
    if ["struct", "class", "enum", "protocol", "func", "var", "let"].contains(module) {
      module = words.dropFirst(2).first ?? module
    }
    return module.split(separator: ".").first.map(String.init)
  }

  static func styleFindings(_ source: Source, columns: Bool) -> [String] {
    var findings: [String] = []
    if source.lines.count > linesMax {
      findings.append("\(source.name): \(source.lines.count) lines, at most \(linesMax)")
    }
    for (index, line) in source.lines.enumerated() {
      func find(_ what: String) { findings.append("\(source.name):\(index + 1): \(what)") }
      if columns, line.count > columnsMax { find("\(line.count) columns") }
      for word in ["try" + "!", "TO" + "DO", "FIX" + "ME", "/wo" + "rk/", "/ro" + "ot/"]
      where line.contains(word) {
        find(word)
      }
      // The thread sanitizer does not see a contended one change hands, and cries wolf.
      if line.contains("Mutex" + "<") || line.contains("Mutex" + "(") { find("NIOLockedValueBox") }
      let proofs = ["@unchecked" + " Sendable", "nonisolated" + "(unsafe)"]
      if proofs.contains(where: line.contains), !hasProof(source.lines, index) {
        find("needs its proof in a comment `// Safe: …` right above")
      }
    }
    return findings
  }

  /// A block of comment lines directly above that says why it is safe.
  static func hasProof(_ lines: [String], _ index: Int) -> Bool {
    var above = index - 1
    while above >= 0 {
      let line = lines[above].trimmingCharacters(in: .whitespaces)
      guard line.hasPrefix("//") else { return false }
      if line.range(of: "Safe: ") != nil { return true }
      above -= 1
    }
    return false
  }

  @Test func arrowsPointDownOnly() throws {
    let sources = try Self.sources(in: "Sources")
    #expect(Set(sources.map(\.target)) == Set(Self.arrows.keys))
    let findings = sources.flatMap(Self.importFindings)
    #expect(findings.isEmpty, "\(findings.joined(separator: "\n"))")
  }

  @Test func theManifestListsNoForbiddenTarget() throws {
    let manifest = try String(
      contentsOf: Self.root.appendingPathComponent("Package.swift"), encoding: .utf8)
    for (target, allowed) in Self.arrows {
      guard
        let start = manifest.range(of: "arget(\n      name: \"\(target)\",")?.upperBound
          ?? manifest.range(of: "arget(name: \"\(target)\",")?.upperBound
      else {
        Issue.record("\(target) is not in Package.swift")
        continue
      }
      let rest = manifest[start...]
      let body = rest[..<(rest.range(of: "swiftSettings")?.lowerBound ?? rest.endIndex)]
      for other in Self.arrows.keys where body.contains("\"\(other)\"") {
        #expect(allowed.contains(other), "Package.swift: \(target) depends on \(other)")
      }
    }
  }

  @Test func theRulesOfTheHouseHold() throws {
    let findings =
      try Self.sources(in: "Sources").flatMap { Self.styleFindings($0, columns: true) }
      + Self.sources(in: "Tests").flatMap { Self.styleFindings($0, columns: false) }
    #expect(findings.isEmpty, "\(findings.joined(separator: "\n"))")
  }

  /// A suite that says Concurrency, where the thread sanitizer's build does not look for it.
  static func concurrencyFindings(_ source: Source, targets: Set<String>) -> [String] {
    let parts = source.name.split(separator: "/").map(String.init)
    let isFound = parts.count > 3 && targets.contains(parts[1]) && parts[2] == "Concurrency"
    guard !isFound else { return [] }
    let types: Set = ["struct", "class", "actor", "enum", "extension"]
    return source.lines.enumerated().compactMap { index, line in
      let words = line.split { !$0.isLetter && !$0.isNumber }.map(String.init)
      guard let at = words.firstIndex(where: types.contains),
        at + 1 < words.count, words[at + 1].contains("Concurrency")
      else { return nil }
      return "\(source.name):\(index + 1): \(words[at + 1]) belongs in a folder Concurrency of a "
        + "target that Package.swift names in concurrencyTargets"
    }
  }

  static func concurrencyTargets() throws -> Set<String> {
    let manifest = try String(
      contentsOf: root.appendingPathComponent("Package.swift"), encoding: .utf8)
    let line = manifest.split(separator: "\n").first { $0.hasPrefix("let concurrencyTargets = [") }
    let names = try #require(line).split(separator: "\"").map(String.init)
    return Set(names.filter { $0.hasSuffix("Tests") })
  }

  @Test func theSanitizerBuildsEverySuiteOfConcurrency() throws {
    let targets = try Self.concurrencyTargets()
    let sources = try Self.sources(in: "Tests")
    let findings = sources.flatMap { Self.concurrencyFindings($0, targets: targets) }
    #expect(findings.isEmpty, "\(findings.joined(separator: "\n"))")
    for target in targets {
      #expect(sources.contains { $0.name.hasPrefix("Tests/\(target)/Concurrency/") })
    }
  }

  @Test(arguments: [
    "Tests/A/X.swift", "Tests/B/Concurrency/X.swift", "Tests/A/X/Concurrency.swift",
  ])
  func aMisplacedSuiteOfConcurrencyIsFound(_ name: String) {
    let source = Source(target: "", name: name, lines: ["struct LeaseConcur" + "rencyTests {"])
    #expect(Self.concurrencyFindings(source, targets: ["A"]).count == 1)
  }

  /// A suite of the parallel run whose tests would hold the threads of what they judge.
  static func blockingFindings(_ source: Source) -> [String] {
    var findings: Set<String> = []
    for (index, line) in source.lines.enumerated() {
      guard line.drop(while: { $0 == " " }).hasPrefix("@Test") else { continue }
      let type = source.lines[...index].lastIndex { $0.first?.isLetter == true || $0.first == "@" }
      guard let type, type < index else {
        findings.insert("\(source.name):\(index + 1): a test belongs in a suite")
        continue
      }
      // Attributes stand on the line itself or right above it.
      let above = source.lines[..<type].reversed().prefix { !$0.isEmpty && $0.first != "}" }
      // A time limit counts from the beginning of the run: such a suite cannot stand in a queue.
      let isPlaced = (above + [source.lines[type]]).contains {
        $0.contains(".blocking") || $0.contains(".timeLimit") || $0.hasPrefix("extension ")
      }
      if !isPlaced {
        findings.insert("\(source.name):\(type + 1): needs @Suite(.blocking)")
      }
    }
    return findings.sorted()
  }

  @Test func everySuiteLeavesThePoolToTheProduct() throws {
    let sources = try Self.sources(in: "Tests").filter {
      // They run one after another, and what they judge runs in processes of its own.
      !$0.name.hasPrefix("Tests/TollgateProcessTests/")
    }
    let findings = sources.flatMap(Self.blockingFindings)
    #expect(findings.isEmpty, "\(findings.joined(separator: "\n"))")
  }

  @Test(arguments: [
    ["@Suite(.serialized) struct A {", "  @Te" + "st func f() {}"],
    ["struct A {", "  @Te" + "st func f() {}"], ["@Te" + "st func f() {}"],
  ])
  func aSuiteOnThePoolIsFound(_ lines: [String]) {
    let source = Source(target: "", name: "canary", lines: lines)
    #expect(Self.blockingFindings(source).count == 1)
  }

  /// What `make bench` sets otherwise than a deployment does, README says beside the figures.
  @Test func everySettingTheBenchLiftsIsNamed() throws {
    func text(_ name: String) throws -> String {
      try String(contentsOf: Self.root.appendingPathComponent(name), encoding: .utf8)
    }
    let script = try text("Benchmarks/suite/stack.py")
    let readme = try text("README.md")
    let lines = script.split(separator: "\n").filter { line in
      ["limits: {", "dedupe: {", "outbox: {"].contains { line.hasPrefix($0) }
    }
    #expect(lines.count == 3)
    for line in lines {
      let section = line.prefix { $0 != ":" }
      for part in line.drop(while: { $0 != "{" }).drop(while: { $0 == "{" }).split(separator: ", ")
      {
        let key = "\(section).\(part.prefix { $0 != ":" })"
        #expect(readme.contains("`\(key)`"), "README does not say that make bench sets \(key)")
      }
    }
    #expect(readme.contains("append-only file") && script.contains("\"--appendonly\", \"no\""))
  }

  @Test(arguments: [
    "package import GRDB", "import struct NIOCore.ByteBuffer", "@preconcurrency import Logging",
  ])
  func aWrongImportIsFound(_ line: String) {
    let source = Source(target: "TollgateCore", name: "canary", lines: [line])
    #expect(Self.importFindings(source).count == 1)
  }

  @Test(arguments: [
    "try" + "! f()", "// TO" + "DO: later", "let path = \"/wo" + "rk/x\"",
    "final class C: @unchecked" + " Sendable {}", String(repeating: "x", count: 101),
    "let seen = Mutex" + "(0)",
  ])
  func aBrokenRuleIsFound(_ line: String) {
    let source = Source(target: "TollgateCore", name: "canary", lines: ["// A comment.", line])
    #expect(Self.styleFindings(source, columns: true).count == 1)
  }

  @Test func aProofIsAccepted() {
    let lines = ["// Safe: guarded by the lock.", "final class C: @unchecked" + " Sendable {}"]
    let source = Source(target: "TollgateCore", name: "canary", lines: lines)
    #expect(Self.styleFindings(source, columns: true).isEmpty)
  }
}
