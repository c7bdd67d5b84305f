// The bound of a fail-open: what an allowance covers, and that the book itself is bounded.

import Testing
import TollgateCore
import TollgateEngine
import TollgateTesting

@Suite(.blocking) struct AllowanceBookTests {
  private func claim(
    _ amount: Int64, _ subject: String = "acme", _ limit: String = "rpm", of allowance: Int64 = 10
  ) throws -> AllowanceBook.Claim {
    AllowanceBook.Claim(
      subject: subject, limit: try Name(limit), amount: amount, allowance: allowance)
  }

  @Test func anAllowanceIsGrantedToItsLastUnit() throws {
    var book = AllowanceBook(entriesMax: 10)
    #expect(book.take([try claim(7)]) == nil)
    #expect(book.take([try claim(4)]) == (try claim(4)))
    #expect(book.take([try claim(3)]) == nil)
    #expect(book.take([try claim(1)]) != nil)
    #expect(book.take([try claim(0)]) == nil)
    #expect(book.granted == 10)
  }

  @Test func allClaimsAreGrantedOrNone() throws {
    var book = AllowanceBook(entriesMax: 10)
    #expect(book.take([try claim(5, "acme", "a"), try claim(11, "acme", "b")])?.limit.text == "b")
    #expect(book.count == 0)
    #expect(book.take([try claim(10, "acme", "a")]) == nil)
  }

  @Test func claimsOnOneAllowanceInOneRequestAddUp() throws {
    var book = AllowanceBook(entriesMax: 10)
    #expect(book.take([try claim(6), try claim(6)]) != nil)
    #expect(book.take([try claim(6), try claim(4)]) == nil)
  }

  @Test func eachSubjectHasItsOwnAllowance() throws {
    var book = AllowanceBook(entriesMax: 10)
    #expect(book.take([try claim(10, "acme", "a")]) == nil)
    #expect(book.take([try claim(10, "acme/ann", "a")]) == nil)
    #expect(book.take([try claim(10, "acme", "b")]) == nil)
  }

  @Test func pitfall42_aFullBookGrantsNothingNewButServesWhatItKnows() throws {
    var book = AllowanceBook(entriesMax: 2)
    #expect(book.take([try claim(1, "a", "l")]) == nil)
    #expect(book.take([try claim(1, "b", "l"), try claim(1, "c", "l")]) != nil)
    #expect(book.take([try claim(1, "b", "l")]) == nil)
    #expect(book.take([try claim(1, "c", "l")]) != nil)
    #expect(book.take([try claim(1, "a", "l")]) == nil)
    #expect(book.count == 2)
  }

  @Test func anOutageThatEndedGivesItAllBack() throws {
    var book = AllowanceBook(entriesMax: 2)
    #expect(book.take([try claim(10)]) == nil)
    book.outageEnded()
    #expect(book.count == 0)
    #expect(book.take([try claim(10)]) == nil)
  }

  @Test func extremesAndNonsenseAreRefused() throws {
    var book = AllowanceBook(entriesMax: 2)
    let all = Quantity.maximum
    #expect(book.take([try claim(all, "a", "l", of: all)]) == nil)
    #expect(book.take([try claim(1, "a", "l", of: all)]) != nil)
    #expect(book.take([try claim(-1, "a", "l", of: all)]) != nil)
  }

  @Test func asAQuestionItTakesNothing() throws {
    var book = AllowanceBook(entriesMax: 4)
    #expect(book.refusal(of: [try claim(10)]) == nil)
    #expect(book.refusal(of: [try claim(11)]) == (try claim(11)))
    #expect(book.take([try claim(10)]) == nil)
  }

  @Test func nothingIsEverGrantedBeyondTheAllowance() throws {
    var random = SeededRandom.fromEnvironment("AllowanceBookTests")
    var book = AllowanceBook(entriesMax: 6)
    var granted: [String: Int64] = [:]
    for _ in 0..<5_000 {
      let claims = try (0..<Int.random(in: 0...3, using: &random)).map { _ in
        try claim(
          Int64.random(in: 0...4, using: &random), "s\(Int.random(in: 0...3, using: &random))",
          "l\(Int.random(in: 0...1, using: &random))", of: 50)
      }
      if random.chance(0.002) {
        book.outageEnded()
        granted.removeAll()
      }
      guard book.take(claims) == nil else { continue }
      for claim in claims { granted["\(claim.subject) \(claim.limit)", default: 0] += claim.amount }
      #expect(granted.values.allSatisfy { $0 <= 50 })
      #expect(book.count <= 6)
    }
  }
}
