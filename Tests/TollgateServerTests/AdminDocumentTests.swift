// proto/ADMIN.md against the handlers: every method is there under its number, and every example
// request is one that its method takes.

import Foundation
import Testing
import TollgateCore
import TollgateServer
import TollgateTesting
import TollgateWire

@Suite(.blocking) struct AdminDocumentTests {
  private static func page() throws -> [(heading: String, example: String)] {
    let path = URL(fileURLWithPath: #filePath)
      .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
      .appendingPathComponent("proto/ADMIN.md")
    let text = try String(contentsOf: path, encoding: .utf8)
    var sections: [(heading: String, example: String)] = []
    for line in text.split(separator: "\n", omittingEmptySubsequences: false) {
      if line.hasPrefix("### "), line.hasSuffix("`") {
        sections.append((String(line.dropFirst(4)), ""))
      } else if line.hasPrefix("## ") {
        sections.append(("", ""))
      } else if line.hasPrefix("    "), !sections.isEmpty {
        sections[sections.count - 1].example += line
      }
    }
    return sections.filter { !$0.heading.isEmpty }
  }

  @Test func everyMethodStandsThereOnceInOrder() throws {
    let headings = try Self.page().map(\.heading)
    #expect(headings == AdminMethod.allCases.map { "\($0.rawValue) `\($0.name)`" })
  }

  @Test(arguments: AdminMethod.allCases)
  func theExampleIsARequestOfItsMethod(_ method: AdminMethod) async throws {
    let fixture = try AdminFixture()
    let section = try #require(
      try Self.page().first { $0.heading == "\(method.rawValue) `\(method.name)`" })
    let document = try Document(json: section.example)
    let answer = await fixture.service.answer(
      method, body: document.jsonBytes(), caller: AdminFixture.caller)
    guard let status = answer.status else { return }
    let failure = try AdminJSON.decode(AdminErrorReply.self, from: answer.body).failure
    // The example names accounts and versions that this fixture lacks; its form must be right.
    #expect(status != .badRequest && status != .internalError, "\(failure) \(failure.problems)")
  }

  @Test(arguments: AdminMethod.allCases)
  func aKeyThatAMethodDoesNotKnowIsRefusedByName(_ method: AdminMethod) async throws {
    let fixture = try AdminFixture()
    let section = try #require(
      try Self.page().first { $0.heading == "\(method.rawValue) `\(method.name)`" })
    guard case .object(var members) = try Document(json: section.example) else {
      Issue.record("the example is no object")
      return
    }
    members.append(.init("surprise", 1))
    let answer = await fixture.service.answer(
      method, body: Document.object(members).jsonBytes(), caller: AdminFixture.caller)
    #expect(answer.status == .badRequest)
    let failure = try AdminJSON.decode(AdminErrorReply.self, from: answer.body).failure
    #expect(failure.problems.first?.path == "surprise")
  }
}
