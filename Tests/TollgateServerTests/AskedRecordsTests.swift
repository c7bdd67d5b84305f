// From the records of the wire to what the enforcer is asked, and what a peer is told that does not
// know reservations.

import NIOCore
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateRedis
@testable import TollgateServer

@Suite(.blocking) struct AskedRecordsTests {
  private let subject: Subject
  private let items: [Item]
  private let id = OperationID(high: 1, low: 2)
  private let other = OperationID(high: 1, low: 3)

  init() throws {
    subject = try Subject("acme/ann")
    items = [Item(feature: try Name("tokens.output"), amount: 1500)]
  }

  private func payload(_ message: some WireMessage) -> ByteBuffer {
    var buffer = ByteBuffer()
    message.encode(into: &buffer)
    return buffer
  }

  private func only(_ records: AskedRecords) throws -> AskedRecord {
    var records = records
    #expect(records.left == 1)
    let first = records.next()
    #expect(records.left == 0)
    let second = records.next()
    #expect(second == nil)
    return try #require(first).get()
  }

  @Test func aReserveHasItsTermsAndTheirDefaults() throws {
    let operation = TollgateWire.OperationRecord(
      id: id, subject: subject, items: items, attributes: ["model": "small"], traceParent: "t")
    let plain = try only(.reserves(.init(payload(ReserveBatch([ReserveRecord(operation)])))))
    #expect(plain.id == id && plain.items == items && plain.traceParent == "t")
    #expect(plain.attributes == ["model": "small"])
    #expect(plain.terms == HoldTerms(ttlMilliseconds: HoldBounds.ttlDefault, overrun: .clamp))
    let named = ReserveRecord(operation, ttlMilliseconds: 60_000, overrun: .clamp)
    #expect(try only(.reserves(.init(payload(ReserveBatch([named]))))).terms == plain.terms)
  }

  @Test func aSettleHasItsReservationAndItsBits() throws {
    let record = SettleRecord(
      id: id, subject: subject, reservation: other, isFinal: true, isFloor: true, items: items)
    let asked = try only(.settles(.init(payload(SettleBatch([record])))))
    #expect(asked.terms == HoldTerms(reservation: other, isFinal: true, isFloor: true))
    #expect(asked.items == items)
  }

  @Test func releaseExtendAndRefundNameWhatTheyAreAbout() throws {
    let release = try only(
      .releases(
        .init(
          payload(
            ReleaseBatch([ReleaseRecord(id: id, subject: subject, reservation: other)])))))
    #expect(release.terms == HoldTerms(reservation: other) && release.items.isEmpty)
    let extend = try only(
      .extends(
        .init(
          payload(
            ExtendBatch([
              ExtendRecord(id: id, subject: subject, reservation: other, ttlMilliseconds: 5)
            ])))))
    #expect(extend.terms == HoldTerms(reservation: other, ttlMilliseconds: 5))
    let refund = try only(
      .refunds(
        .init(
          payload(
            RefundBatch([
              RefundRecord(id: id, subject: subject, corrects: other, items: items, reason: "r")
            ])))))
    #expect(refund.terms == HoldTerms(reservation: other, reason: "r") && refund.items == items)
  }

  @Test func aBadRecordIsRefusedInItsPlace() throws {
    var long = ReserveRecord(
      TollgateWire.OperationRecord(id: id, subject: subject, items: items))
    long.ttlMilliseconds = 86_400_001
    let good = ReserveRecord(
      TollgateWire.OperationRecord(id: other, subject: subject, items: items))
    var records = AskedRecords.reserves(try .init(payload(ReserveBatch([long, good]))))
    guard case .failure(let error)? = records.next() else {
      Issue.record("a ttl of more than a day was read")
      return
    }
    #expect(error.code == .badRequest)
    let second = records.next()
    #expect(try #require(second).get().id == other)
  }

  @Test func theModesThatTellOfThePastWaitForTheStore() {
    let modes: [RequestMode] = [
      .check, .consume, .post, .cancel, .reserve, .settle, .release, .extend, .refund,
    ]
    #expect(
      modes.filter(\.tellsOnly) == [.post, .cancel, .settle, .release, .extend, .refund])
    #expect(
      modes.compactMap(\.holdVerb) == [.reserve, .settle, .release, .extend, .refund])
  }

  /// PROTOCOL 7.2.
  @Test func aPeerWithoutReservationsIsToldReasonsThatItKnows() {
    for reason in Reason.allCases {
      let told = reason.knownWithoutReservations
      switch reason.rawValue {
      case 29, 30, 31, 33: #expect(told.rawValue == 22)
      case 32: #expect(told.rawValue == 19)
      case 34: #expect(told.rawValue == 16)
      default: #expect(told == reason)
      }
      #expect(told.isAllowed == reason.isAllowed)
    }
  }
}
