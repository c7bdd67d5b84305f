// Names and subjects: what is let in at the edge.

import Testing
import TollgateCore
import TollgateTesting

@Suite(.blocking) struct NamesTests {
  @Test(arguments: ["a", "chat.requests", "A-1_b.c", "9lives", String(repeating: "x", count: 64)])
  func namesAreAccepted(_ text: String) throws {
    #expect(try Name(text).text == text)
  }

  @Test(arguments: [
    "", ".a", "-a", "_a", "a b", "a:b", "a{b}", "a|b", "a~b", "a/b", "é", "a\n", "a\0",
    String(repeating: "x", count: 65),
  ])
  func namesAreRefused(_ text: String) {
    #expect(throws: InvalidName.self) { try Name(text) }
  }

  @Test(arguments: [
    ("acme", 1), ("acme/ann", 2), ("a/b/c/d/e", 5), ("user+tag@example.com/-/..", 3),
    (String(repeating: "x", count: 64) + "/y", 2),
  ])
  func subjectsAreAccepted(_ path: String, _ depth: Int) throws {
    let subject = try Subject(path)
    #expect(subject.depth == depth)
    #expect(subject.path == path)
  }

  @Test(arguments: [
    "", "/", "a/", "/a", "a//b", "a/b/c/d/e/f", "a b", "a:b", "a{b", "a|b", "ä",
    String(repeating: "x", count: 65), "a/" + String(repeating: "x", count: 65),
  ])
  func subjectsAreRefused(_ path: String) {
    #expect(throws: InvalidName.self) { try Subject(path) }
  }

  @Test func prefixesAreAncestors() throws {
    let run = try Subject("acme/ann/run7")
    #expect(run.account.path == "acme")
    #expect(run.prefix(2).path == "acme/ann")
    #expect(run.prefix(2).depth == 2)
    #expect(run.prefix(3) == run)
    #expect(run.prefix(5) == run)
    #expect(run.account.contains(run))
    #expect(run.contains(run))
    #expect(!run.contains(run.account))
    #expect(try !Subject("acme/an").contains(run))
  }

  @Test func aPrefixEqualsTheSameSubjectReadAnew() throws {
    #expect(try Subject("acme/ann/x").prefix(2) == Subject("acme/ann"))
  }
}
