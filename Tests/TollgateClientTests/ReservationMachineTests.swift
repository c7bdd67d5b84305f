// One reservation as a value: what it tells at its end, and when it wants to be extended.

import Testing
import TollgateTesting
import TollgateWire

@testable import TollgateClient

private let second: Int64 = 1_000_000_000

private func at(_ nanoseconds: Int64) -> MonotonicTime { MonotonicTime(nanoseconds: nanoseconds) }

private func held(_ seconds: Int64, _ reason: Reason = .allowed) -> Decision {
  var held = decision(reason)
  held.expires = held.time + seconds * 1000
  return held
}

private func machine(
  _ features: String..., reserved: Decision = held(60)
) -> ReservationMachine {
  ReservationMachine(
    (features.isEmpty ? ["a"] : features).map { item($0, 100) }, reserved: reserved, sent: at(0))
}

@Suite(.blocking) struct ReservationMachineTests {
  // MARK: the end

  @Test func whatWasUsedIsSettled() throws {
    var m = machine("a", "b")
    try m.used([item("b", 7), item("a", 1)])
    try m.used([item("a", 2)])
    #expect(
      m.end(.returned) == .settle([item("a", 3), item("b", 7)], isFinal: true, isFloor: false))
  }

  @Test func aFeatureThatWasNeverSpokenOfMakesItTheLeast() throws {
    var m = machine("a", "b")
    try m.used([item("a", 3)])
    #expect(
      m.end(.returned) == .settle([item("a", 3), item("b", 0)], isFinal: true, isFloor: true))
  }

  @Test func anAmountOfZeroIsAStatement() throws {
    var m = machine()
    try m.used([item("a", 0)])
    #expect(m.end(.returned) == .settle([item("a", 0)], isFinal: true, isFloor: false))
  }

  @Test func aBlockThatSaidNothingSettlesNothingAsTheLeast() {
    var m = machine()
    #expect(m.end(.returned) == .settle([item("a", 0)], isFinal: true, isFloor: true))
  }

  @Test func aCutBlockSettlesTheLeast() throws {
    var m = machine()
    try m.used([item("a", 3)])
    #expect(m.end(.cut) == .settle([item("a", 3)], isFinal: true, isFloor: true))
  }

  @Test func aCutBlockThatSaidNothingIsLeftToExpire() {
    var m = machine()
    #expect(m.end(.cut) == .leave)
  }

  @Test(arguments: [ReservationMachine.Exit.returned, .cut])
  func onlyWhoSaysThatNothingWasUsedReleases(_ exit: ReservationMachine.Exit) throws {
    var m = machine()
    m.usedNothing()
    #expect(m.end(exit) == .release)
    var used = machine()
    used.usedNothing()
    try used.used([item("a", 1)])
    #expect(used.end(.returned) == .settle([item("a", 1)], isFinal: true, isFloor: false))
  }

  @Test func whatWasDrawnIsNeverReleased() throws {
    var m = machine()
    try m.used([item("a", 3)])
    #expect(m.draw() == [item("a", 3)])
    m.drawn(decision(.settled))
    m.usedNothing()
    #expect(m.end(.returned) == .settle([item("a", 0)], isFinal: true, isFloor: false))
  }

  // MARK: what cannot be used

  @Test func aFeatureThatWasNotReservedIsRefusedWithEverythingBesideIt() {
    var m = machine()
    #expect(throws: TollgateError.self) { try m.used([item("a", 1), item("x", 1)]) }
    #expect(throws: TollgateError.self) { try m.used([item("a", -1)]) }
    #expect(m.total.isEmpty)
  }

  @Test func useBeyondTheQuantityRangeIsRefused() throws {
    var m = machine()
    try m.used([item("a", Quantity.maximum)])
    #expect(throws: TollgateError.self) { try m.used([item("a", 1)]) }
    #expect(m.total == [item("a", Quantity.maximum)])
  }

  // MARK: settling as it goes

  @Test func aDrawTellsOnlyWhatIsNew() throws {
    var m = machine()
    try m.used([item("a", 3)])
    #expect(m.draw() == [item("a", 3)])
    m.drawn(decision(.settled))
    #expect(m.draw().isEmpty)
    try m.used([item("a", 4)])
    #expect(m.total == [item("a", 7)])
    #expect(m.end(.returned) == .settle([item("a", 4)], isFinal: true, isFloor: false))
  }

  @Test func aDrawThatWasRefusedIsToldAgain() throws {
    var m = machine()
    try m.used([item("a", 3)])
    m.undrawn(m.draw())
    #expect(m.draw() == [item("a", 3)])
  }

  @Test func aClampedDrawSaysThatTheLimitIsReached() throws {
    var m = machine()
    m.drawn(decision(.settledClamped))
    #expect(m.isLimitReached && !m.isLost)
  }

  /// A late settle ends the reservation, final or not.
  @Test func afterALateDrawTheRestIsToldBesideIt() throws {
    var m = machine()
    try m.used([item("a", 3)])
    _ = m.draw()
    m.drawn(decision(.settledLate))
    #expect(m.isLost && m.nextExtension == nil)
    var silent = m
    #expect(silent.end(.returned) == .none)
    try m.used([item("a", 2)])
    #expect(m.end(.returned) == .settle([item("a", 2)], isFinal: false, isFloor: false))
  }

  // MARK: staying alive

  @Test func itIsExtendedAtHalfOfWhatIsLeft() {
    var m = machine()
    #expect(m.nextExtension == at(30 * second))
    m.extended(held(60, .extended), sent: at(31 * second))
    #expect(m.nextExtension == at(61 * second))
  }

  @Test func aFailedExtensionIsRepeatedAtHalfOfTheRest() {
    var m = machine()
    m.extensionFailed(.notSent(.queueFull), at(30 * second))
    #expect(m.nextExtension == at(45 * second))
    m.extensionFailed(.rejected(.overloaded, message: ""), at(45 * second))
    #expect(m.nextExtension == at(45 * second + 15 * second / 2))
  }

  @Test func itIsAskedForUntilTheGraceIsOver() {
    var m = machine()
    m.extensionFailed(.outcomeUnknown(operation(1)), at(62 * second))
    #expect(m.nextExtension == at(62 * second + ReservationMachine.extendPauseMin))
    #expect(!m.isLost)
    m.extensionFailed(.outcomeUnknown(operation(1)), at(65 * second))
    #expect(m.nextExtension == nil && m.isLost)
  }

  @Test(arguments: [ErrorCode.reservationEnded, .reservationUnknown])
  func aHoldThatIsGoneIsNotAskedForAgain(_ code: ErrorCode) throws {
    var m = machine()
    try m.used([item("a", 3)])
    m.extensionFailed(.rejected(code, message: ""), at(30 * second))
    #expect(m.nextExtension == nil && m.isLost)
    #expect(m.end(.returned) == .settle([item("a", 3)], isFinal: true, isFloor: false))
  }

  /// A recorded answer says when the hold expired or will, not that it lives.
  @Test func aRepeatedReserveIsExtendedAtOnce() {
    var reserved = held(60)
    reserved.replayed = true
    #expect(machine(reserved: reserved).nextExtension == at(0))
  }

  @Test func withoutAHoldThereIsNothingToExtend() {
    #expect(machine(reserved: decision(.allowed)).nextExtension == nil)
  }
}
