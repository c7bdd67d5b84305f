// What the books say of one operation: enough to build a refund of what Redis forgot, and to clamp
// it to what is left.

import Foundation
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateLedger

@Suite(.blocking) struct OperationQueryTests {
  let books: Books

  init() throws {
    books = try Books()
    try books.open()
  }

  @Test func anOperationIsToldWithItsPartsChargesAndCorrections() throws {
    _ = try books.apply([
      try spend(1, op: 1, 9, feature: "tokens", parts: [try priced("r", 9)]),
      try spend(
        2, op: 1, index: 1, 40, absorbed: 2, parts: [try grant("a", 30), overage(.month, 10)],
        charges: [try charge("r", units: 9, 42, from: 7)]),
      try spend(3, op: 2, -15, kind: .refund, parts: [overage(.month, -10)], corrects: 1),
      try spend(4, op: 3, -5, kind: .refund, parts: [try grant("a", -5)], corrects: 1),
      try spend(5, op: 4, -5, kind: .refund, corrects: 3),
    ])
    let (answer, next) = try books.store.operation(operation(1), bucket: 0)
    #expect(next == nil)
    #expect(answer.deltas.map(\.feature) == ["tokens", "spend"])
    let delta = answer.deltas[1]
    #expect(delta.id == "\(operation(1).hex).1" && delta.subject == "acme/ann" && delta.kind == 1)
    #expect(delta.actual == 42 && delta.charged == 40 && delta.absorbed == 2)
    #expect(delta.cells.map(\.window) == ["M"] && delta.start == november.start.milliseconds)
    #expect(delta.parts.map(\.window) == ["$a", "oM"] && delta.parts.map(\.amount) == [30, 10])
    #expect(delta.charges == [.init(rate: "r", from: 7, units: 9, charge: 42)])
    #expect(answer.corrections.map(\.charged) == [-15, -5])
    #expect(answer.corrections.map(\.corrects) == [operation(1).hex, operation(1).hex])
    #expect(answer.left.map(\.feature) == ["spend", "tokens"])
    #expect(answer.left.map(\.charged) == [20, 9] && answer.left.map(\.absorbed) == [2, 0])
    // In another bucket the same id is another operation.
    #expect(try books.store.operation(operation(1), bucket: 1).answer.deltas.isEmpty)
  }

  @Test func theSettlesOfAReservationNameIt() throws {
    _ = try books.apply([
      try spend(1, op: 2, 5, corrects: 1), try spend(2, op: 3, 7, corrects: 1),
    ])
    let answer = try books.store.operation(operation(1), bucket: 0).answer
    #expect(answer.deltas.isEmpty && answer.corrections.map(\.kind) == [1, 1])
    #expect(answer.left.map(\.charged) == [12])
  }

  @Test func aParkedDeltaIsToldAsSuchAndCountsNothing() throws {
    _ = try books.apply([
      try spend(1, op: 1, 5, parts: [try grant("a", 6)]), try spend(2, op: 1, index: 1, 8),
    ])
    let answer = try books.store.operation(operation(1), bucket: 0).answer
    #expect(answer.deltas.map(\.isParked) == [true, false])
    #expect(answer.left.map(\.charged) == [8])
  }

  @Test func answersArePaged() throws {
    _ = try books.apply(
      try (1...5).map { try spend(Int64($0), op: 1, index: UInt16($0), 10) }
        + (6...12).map { try spend(Int64($0), op: $0, -1, kind: .refund, corrects: 1) })
    var ids: [String] = []
    var key: LedgerStore.OperationPageKey?
    repeat {
      let (answer, next) = try books.store.operation(operation(1), bucket: 0, after: key, limit: 3)
      #expect(answer.deltas.count + answer.corrections.count <= 3)
      #expect(answer.left.map(\.charged) == [43], "of all, whatever the page")
      ids += (answer.deltas + answer.corrections).map(\.id)
      key = next
    } while key != nil
    #expect(ids.count == 12 && Set(ids).count == 12)
    #expect(ids == ids.sorted())
    let most = try books.store.operation(operation(1), bucket: 0, limit: 1_000_000)
    #expect(most.answer.deltas.count == 5)
  }

  @Test func itIsAskedOverTheWire() async throws {
    let ledger = try await RunningLedger.start()
    let sidecar = try ledger.sidecar("one")
    _ = try sidecar.open(0)
    _ = try sidecar.apply(
      DeltaBatch(
        bucket: 0, epoch: 1, previous: 0,
        entries: [
          try spend(1, op: 1, 40, parts: [try grant("a", 30)]),
          try spend(2, op: 2, -9, kind: .refund, corrects: 1),
        ]))
    func ask(_ document: String) throws -> String {
      let query = QueryRequest(.operation, body: Array(document.utf8))
      return String(
        decoding: try QueryReply.decode(try sidecar.request(query)).body, as: UTF8.self)
    }
    let id = operation(1).hex
    let first = try ask(#"{"bucket":0,"operation":"\#(id)","count":1}"#)
    #expect(first.contains(#""window":"$a""#) && first.contains(#""corrections":[]"#))
    #expect(first.contains(#""next":"0|\#(id).0""#) && first.contains(#""charged":31"#))
    let second = try ask(#"{"bucket":0,"operation":"\#(id)","cursor":"0|\#(id).0"}"#)
    #expect(second.contains(#""deltas":[]"#) && second.contains(#""charged":-9"#))
    #expect(!second.contains("next"))
    try await ledger.finish()
  }
}
