// Settle, release and expiry of one reservation at the same time, from three connections: whoever
// comes first ends it, once, and nothing of it is held afterwards.

import NIOConcurrencyHelpers
import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct HoldRaceTests {
  static let races = 10_000
  static let racesPerRound = 500

  private enum Ended: Hashable { case settled, late, released, expired }

  @Test func aReservationEndsOnceHoweverManyTry() throws {
    let rig = try StoreRig.ready()
    rig.useRich()
    rig.global.catalog.plans = rig.global.catalog.plans.mapValues { plan in
      Plan(name: plan.name, entitlements: plan.entitlements.mapValues { _ in [] })
    }
    var ends: [Ended: Int] = [:]
    for _ in 0..<(Self.races / Self.racesPerRound) {
      let held = try (0..<Self.racesPerRound).map { _ in
        try rig.reserve("acme/ann", ("tokens", 3), ttl: 1000)
      }
      // All of them are over time when they are raced for: settle and release find them so, too.
      try rig.setNow(rig.now + 6001)
      let settle = try held.map {
        StoreRig.command(
          try rig.step(
            .settle([Item(feature: Catalog.name("tokens"), amount: 1)], isFinal: true),
            "acme/ann", $0, plan: rig.now + -6001), rig.library)
      }
      let release = try held.map {
        StoreRig.command(try rig.step(.release, "acme/ann", $0), rig.library)
      }
      let expire = try held.map {
        StoreRig.command(try rig.expire("acme/ann", [$0]), rig.library)
      }
      let replies = try race([settle, release, expire], on: rig)
      for index in held.indices {
        let (settled, released, expired) = (
          RichReply(replies[0][index]).answer, RichReply(replies[1][index]).answer,
          replies[2][index]
        )
        var won: [Ended] = []
        switch settled.decided?.decision.reason {
        case .settled?, .settledClamped?: won.append(.settled)
        case .settledLate?: won.append(.late)
        default: break
        }
        if released.decided?.decision.reason == .released { won.append(.released) }
        if expired[1].number == 1 { won.append(.expired) }
        // What expired may be settled once, late; nothing else goes together.
        #expect(won == [.late, .expired] || won.count <= 1 || won == [.expired], "\(won)")
        for end in won { ends[end, default: 0] += 1 }
      }
      // Whoever found them over time and left them is followed by the sweeper.
      let account = try Subject("acme")
      for hold in try rig.read(Reads.holds(rig.keySpace, account: account)) {
        _ = try rig.run(rig.expire("acme/ann", [hold.reservation]))
      }
      #expect(try rig.read(Reads.holds(rig.keySpace, account: account)).isEmpty)
      for (field, cell) in try rig.counters("acme").cells { #expect(cell.held == 0, "\(field)") }
      for (field, cell) in try rig.counters("acme/ann").cells {
        #expect(cell.held == 0 && cell.previousHeld == 0, "\(field)")
      }
    }
    print("\(Self.races) races: \(ends)")
  }

  /// Each list on a connection and thread of its own, all at once.
  private func race(_ lists: [[[[UInt8]]]], on rig: StoreRig) throws -> [[RESPReply]] {
    let connections = try lists.map { _ in try rig.server.connect() }
    let results = NIOLockedValueBox([Int: [RESPReply]]())
    withBlockingThreads(lists.count) { lane in
      let replies = try? lists[lane].map { try connections[lane].pipeline([$0])[0] }
      results.withLockedValue { $0[lane] = replies?.map { RESPReply($0) } }
    }
    let found = results.withLockedValue { $0 }
    return try lists.indices.map { try #require(found[$0]) }
  }
}
