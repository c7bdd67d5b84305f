// What Redis keeps of a subject, of an operation and of a reservation, in bytes as Redis counts them.
// README has the figures; the bounds here leave room for another allocator, not for another shape.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct ScriptsMemoryTests {
  private func bytes(_ rig: StoreRig, _ pattern: String) throws -> Int64 {
    try rig.redis.command("KEYS", pattern).strings.reduce(Int64(0)) {
      $0 + (try rig.redis.command("MEMORY", "USAGE", $1, "SAMPLES", "0").integer ?? 0)
    }
  }

  private func ready() throws -> StoreRig {
    let rig = try StoreRig.ready()
    rig.limits.outboxEntriesMax = .max / 4096
    rig.limits.volumeRecordBytesMax = .max / 4096
    return rig
  }

  /// Nothing is denied, everything is counted.
  private func lift(_ rig: StoreRig) {
    rig.global.catalog.plans = rig.global.catalog.plans.mapValues { plan in
      Plan(
        name: plan.name,
        entitlements: plan.entitlements.mapValues { limits in
          limits.map {
            Limit(
              id: $0.id, kind: $0.kind.withAmount(Quantity.maximum), level: $0.level,
              enforcement: .soft, failurePolicy: $0.failurePolicy)
          }
        })
    }
  }

  private func pipeline(_ rig: StoreRig, _ count: Int, _ call: (Int) throws -> [[UInt8]]) throws {
    for start in stride(from: 0, to: count, by: 100) {
      for reply in try rig.redis.pipeline(try (start..<start + 100).map(call)) {
        #expect(RESPReply(reply).error == nil)
      }
    }
  }

  /// A member with two limits and a rate, and its place in the index of the account's subjects.
  @Test func aMemberIsMeasured() throws {
    let rig = try ready()
    lift(rig)
    let count = 1000
    try pipeline(rig, count) {
      StoreRig.command(try rig.call("acme/m\($0)", [("chat", 1)]), rig.library)
    }
    let each = try bytes(rig, "*acme*") / Int64(count)
    print("a member: \(each) bytes in Redis (hash and index)")
    #expect(each > 100 && each <= 600)
  }

  /// What a sidecar holds of an account, of one counter and of three portions; and what is remembered
  /// of its calls.
  @Test func leasesAreMeasured() throws {
    let rig = try StoreRig.leased(amount: Quantity.maximum)
    let count = 200
    for number in 0..<count { try rig.seed("a\(number)") }
    func held(_ feature: String, _ suffix: String) throws -> Int64 {
      for number in 0..<count {
        var none = TestLessee(UInt64(number))
        _ = try rig.run(none.exchange(rig, "a\(number)\(suffix)", feature, settle: 1))
      }
      let before = try bytes(rig, "*:a:a*") + bytes(rig, "*:lx")
      for number in 0..<count {
        var one = TestLessee(UInt64(number) << 32 + UInt64(feature.utf8.count))
        let outcome = try rig.run(
          one.exchange(rig, "a\(number)\(suffix)", feature, target: 100))
        #expect(outcome.left == 100)
      }
      return (try bytes(rig, "*:a:a*") + bytes(rig, "*:lx") - before) / Int64(count)
    }
    let single = try held("tokens", "")
    let three = try held("chat", "/ann")
    var one = TestLessee(9)
    for _ in 0..<LeaseRules.callsKept {
      try rig.advance(1)
      _ = try rig.run(one.exchange(rig, "a0", "tokens", settle: 1))
    }
    let calls = try bytes(rig, "*:lb:" + one.id.hex)
    print(
      "a lease: \(single) bytes in Redis with one portion, \(three) with three; the latest calls of a "
        + "lessee \(calls)")
    #expect(single > 40 && single <= 400)
    #expect(three > 100 && three <= 900)
    #expect(calls >= 16 * Int64(LeaseRules.callsKept) && calls <= 1000)
  }

  @Test func operationsWithPricesAndReservationsAreMeasured() throws {
    let rig = try ready()
    rig.useRich()
    lift(rig)
    let count = 1000
    try pipeline(rig, count) { _ in
      StoreRig.command(try rig.transact("acme/ann", [("tokens", 1)]), rig.library)
    }
    let record = try bytes(rig, "*:op:*") / Int64(count)
    let created = rig.now
    let ids = try (0..<count).map { _ in
      try rig.reserve("acme/ann", ("tokens", 3), ttl: 600_000)
    }
    let reserved = try bytes(rig, "*:op:*") / Int64(count) - record
    let holds = try rig.read(Reads.holds(rig.keySpace, account: try Subject("acme")))
    #expect(holds.count == count)
    let hold = (try bytes(rig, "*:h:*") + bytes(rig, "*:hx:*")) / Int64(count)
    try pipeline(rig, count) {
      StoreRig.command(
        try rig.step(
          .settle([Item(feature: Catalog.name("tokens"), amount: 2)], isFinal: true), "acme/ann",
          ids[$0], plan: created), rig.library)
    }
    let settled = try bytes(rig, "*:op:*") / Int64(count) - record - reserved
    let ended = try bytes(rig, "*:he:*") / Int64(count)
    print(
      "bytes in Redis: record of a priced consume \(record), of a reserve \(reserved), of a settle "
        + "\(settled); a live hold \(hold), one that ended \(ended)")
    #expect(record > 100 && record <= 500)
    #expect(reserved > 100 && reserved <= 500)
    #expect(settled > 100 && settled <= 500)
    #expect(hold > 100 && hold <= 900)
    #expect(ended > 20 && ended <= 200)
  }
}
