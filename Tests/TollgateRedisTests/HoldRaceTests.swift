// Settle, release and expiry of one reservation at the same time, from three connections: whoever
// comes first ends it, once, and nothing of it is held afterwards.

import Dispatch
import NIOConcurrencyHelpers
import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct HoldRaceTests {
  static let races = 10_000

  private enum Ended: Hashable { case settled, late, released, expired }

  /// At the instant at which it is over: one connection moves the clock there and expires it, one
  /// settles, one releases.
  @Test func aReservationEndsOnceHoweverManyTry() throws {
    let rig = try StoreRig.ready()
    rig.useRich()
    // Nothing is denied, so that each race begins alike.
    rig.global.catalog.plans = rig.global.catalog.plans.mapValues { plan in
      Plan(name: plan.name, entitlements: plan.entitlements.mapValues { _ in [] })
    }
    let connections = try (0..<3).map { _ in try rig.server.connect() }
    var ends: [[Ended]: Int] = [:]
    for _ in 0..<Self.races {
      let created = rig.now
      let id = try rig.reserve("acme/ann", ("tokens", 3), ttl: 1000)
      try rig.setNow(created + 5999)
      let over = "\((created + 6000).milliseconds * 1000)"
      let used = [Item(feature: Catalog.name("tokens"), amount: 1)]
      let lanes = [
        StoreRig.command(
          try rig.step(.settle(used, isFinal: true), "acme/ann", id, plan: created), rig.library),
        StoreRig.command(try rig.step(.release, "acme/ann", id), rig.library),
        StoreRig.command(try rig.expire("acme/ann", [id]), rig.library),
      ]
      let replies = NIOLockedValueBox([RESPReply](repeating: .null, count: 3))
      // Whoever is first in line is most often first; so each is as often.
      let line = [0, 1, 2].shuffled(using: &rig.random)
      DispatchQueue.concurrentPerform(iterations: 3) { place in
        let lane = line[place]
        let reply = try? Self.ask(connections[lane], lanes[lane], clock: lane == 2 ? over : nil)
        replies.withLockedValue { $0[lane] = reply ?? .null }
      }
      let ended = Self.ended(replies.withLockedValue { $0 })
      // What expired may be settled once, late; nothing else goes together.
      #expect(ended.count == 1 || ended == [.late, .expired], "\(ended)")
      ends[ended, default: 0] += 1
      try rig.setNow(created + 6000)
    }
    #expect(try rig.read(Reads.holds(rig.keySpace, account: try Subject("acme"))).isEmpty)
    for path in ["acme", "acme/ann"] {
      for (field, cell) in try rig.counters(path).cells {
        #expect(cell.held == 0 && cell.previousHeld == 0, "\(path) \(field)")
      }
    }
    print("\(Self.races) races: \(ends)")
    // A race that only one can win is none.
    for end in [[Ended.settled], [.released]] { #expect(ends[end, default: 0] > 100, "\(end)") }
    #expect(ends[[.expired], default: 0] + ends[[.late, .expired], default: 0] > 100)
  }

  /// As long as reservations are due, others are told to expire them first, and ask again.
  private static func ask(
    _ redis: MiniRedis, _ command: [[UInt8]], clock: String?
  ) throws -> RESPReply {
    if let clock {
      let set = ["SET", "test:now", clock].map { Array($0.utf8) }
      return RESPReply(try redis.pipeline([set, command])[1])
    }
    while true {
      let reply = RESPReply(try redis.pipeline([command])[0])
      if reply.code != .holdsDue { return reply }
    }
  }

  private static func ended(_ replies: [RESPReply]) -> [Ended] {
    var ended: [Ended] = []
    switch RichReply(replies[0]).answer.decided?.decision.reason {
    case .settled?, .settledClamped?: ended.append(.settled)
    case .settledLate?: ended.append(.late)
    default: break
    }
    if RichReply(replies[1]).answer.decided?.decision.reason == .released {
      ended.append(.released)
    }
    if replies[2].code == .done, replies[2][1].number == 1 { ended.append(.expired) }
    return ended
  }
}
