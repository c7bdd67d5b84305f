// Lines of PITFALLS about time and names that the scripts alone can break, by number.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct ScriptsPitfallTests {
  /// INCR and EXPIRE are one script here: no moment at which a key without an end can be left.
  @Test func pitfall29_everyKeyThatEndsHasItsEndFromTheCallThatMadeIt() throws {
    let rig = try StoreRig.ready()
    let lasting = Set(try rig.redis.command("KEYS", "*").strings)
    #expect(try rig.consume("acme/ann", ("chat", 1)).reason == .allowed)
    let made = try rig.redis.command("KEYS", "*").strings.filter { !lasting.contains($0) }
    #expect(made.contains(rig.keySpace.subject(0, try Subject("acme/ann"))))
    for key in made where key != rig.keySpace.outbox(0) {
      #expect(try rig.redis.command("PEXPIRETIME", key).integer ?? 0 > 0, "\(key)")
    }
  }

  /// Milliseconds where seconds are meant would keep a key for fifty thousand years, and the other
  /// way round would end it at once.
  @Test func pitfall29_anEndIsInMilliseconds() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme/ann", ("chat", 1))
    let late = rig.now.milliseconds + 40 * 86_400_000
    for key in try rig.redis.command("KEYS", "*").strings {
      let end = try rig.redis.command("PEXPIRETIME", key).integer ?? 0
      #expect(end == -1 || (rig.now.milliseconds...late).contains(end), "\(key) ends at \(end)")
    }
  }

  /// A counter named after its hour would find yesterday's.
  @Test func pitfall29_theSameHourOfTomorrowIsAnother() throws {
    let rig = try StoreRig.ready()
    #expect(try rig.consume("acme/ann", ("chat", 6)).reason == .allowed)
    #expect(try rig.consume("acme/ann", ("chat", 1)).reason == .quotaExceeded)
    try rig.advance(86_400_000)
    #expect(try rig.consume("acme/ann", ("chat", 6)).reason == .allowed)
    #expect(try rig.settled("acme/ann", "chat", .hour) == 6)
  }

  /// A month of 31, 30, 29 and 28 days: full to its last millisecond, empty at the first of the
  /// next.
  @Test(arguments: ["2071-01", "2071-04", "2072-02", "2071-02", "2071-12"])
  func pitfall30_aMonthIsAsLongAsItIs(_ text: String) throws {
    let parts = text.split(separator: "-").compactMap { Int(String($0)) }
    let first = try #require(WallTime(year: parts[0], month: parts[1]))
    let month = Window.month.period(containing: first)
    #expect(month.start == first)
    let rig = try StoreRig.ready()
    try rig.setNow(month.start)
    #expect(try rig.consume("acme", ("tokens", 1000)).reason == .allowed)
    try rig.setNow(month.end + (-1))
    let last = try #require(try rig.consume("acme", ("tokens", 1)).decided).decision
    #expect(last.reason == .quotaExceeded && last.retryAfter == 1)
    try rig.setNow(month.end)
    #expect(try rig.consume("acme", ("tokens", 1000)).reason == .allowed)
  }
}

extension WallTime {
  /// Midnight, UTC, of the first of a month, by counting the days since 1970.
  fileprivate init?(year: Int, month: Int) {
    var days = 0
    for past in 1970..<year { days += Self.isLeap(past) ? 366 : 365 }
    let lengths = [31, Self.isLeap(year) ? 29 : 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    guard (1...12).contains(month) else { return nil }
    days += lengths.prefix(month - 1).reduce(0, +)
    self.init(milliseconds: Int64(days) * 86_400_000)
  }

  private static func isLeap(_ year: Int) -> Bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
  }
}
