// Ways to run the scripts of grants, prices and reservations, for the suites that break each script
// at every step (`ScriptsFaultTests`) and put another fence before it (`ScriptsFenceTests`).

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

extension Scenario {
  private static func used(_ tokens: Int64) -> [Item] {
    [Item(feature: Catalog.name("tokens"), amount: tokens)]
  }

  /// A hold that was lost and is there again.
  private static func broughtBack(_ rig: StoreRig) throws -> StoredHold {
    rig.useRich()
    _ = try rig.reserve("acme/ann", ("tokens", 3), ("runs", 1))
    let hold = try #require(
      try rig.read(Reads.holds(rig.keySpace, account: try Subject("acme"))).first)
    try rig.redis.command("FLUSHALL")
    try rig.setNow(rig.now)
    try rig.open(epoch: 2, hadPredecessor: true)
    try rig.seed()
    _ = try rig.run(
      RepresentCall(
        keySpace: rig.keySpace, fence: rig.fence, subject: hold.subject, hold: hold))
    return hold
  }

  static let rich: [Scenario] = [
    Scenario("first priced consume of a member", .transact) {
      $0.useRich()
      return command($0, try $0.transact("acme/ann", [("tokens", 5)]))
    },
    Scenario("later priced consume, partly beyond what is included", .transact) {
      $0.useRich()
      _ = try $0.run($0.transact("acme/ann", [("tokens", 5)]))
      try $0.advance(4_000_000)
      return command($0, try $0.transact("acme/ann", [("tokens", 5)]))
    },
    Scenario("denied by a cap", .transact) {
      $0.useRich()
      return command($0, try $0.transact("acme/ann", [("tokens", 50)]))
    },
    Scenario("post of a rich feature", .transact) {
      $0.useRich()
      return command($0, try $0.transact("acme/ann", [("tokens", 50)], mode: .post))
    },
    Scenario("first reservation", .transact) {
      $0.useRich()
      return command(
        $0,
        try $0.transact("acme/ann", [("tokens", 5), ("runs", 1)], mode: .reserve(ReserveTerms())))
    },
    Scenario("reservation beside another", .transact) {
      $0.useRich()
      _ = try $0.reserve("acme/ann", ("tokens", 5), ("runs", 1))
      return command(
        $0,
        try $0.transact(
          "acme/ann", [("tokens", 5), ("runs", 1)],
          mode: .reserve(ReserveTerms(ttlMilliseconds: 1000))))
    },
    Scenario("check of a rich feature", .transactCheck) {
      $0.useRich()
      return command($0, try $0.transact("acme/ann", [("tokens", 5)], mode: .check))
    },
    Scenario("settle in part", .settle) {
      $0.useRich()
      let id = try $0.reserve("acme/ann", ("tokens", 6), ("runs", 1))
      return command($0, try $0.step(.settle(used(2), isFinal: false), "acme/ann", id))
    },
    Scenario("settle for good", .settle) {
      $0.useRich()
      let id = try $0.reserve("acme/ann", ("tokens", 6))
      _ = try $0.reserve("acme/bob", ("tokens", 1))
      return command($0, try $0.step(.settle(used(2), isFinal: true), "acme/ann", id))
    },
    Scenario("settle of more than is held", .settle) {
      $0.useRich()
      let id = try $0.reserve("acme/ann", ("tokens", 2))
      return command(
        $0, try $0.step(.settle(used(40), isFinal: true), "acme/ann", id, plan: $0.now))
    },
    Scenario("settle that comes late", .settle) {
      $0.useRich()
      let created = $0.now
      let id = try $0.reserve("acme/ann", ("tokens", 2), ttl: 1000)
      try $0.advance(7000)
      _ = try $0.run($0.expire("acme/ann", [id]))
      return command(
        $0, try $0.step(.settle(used(4), isFinal: true), "acme/ann", id, plan: created))
    },
    Scenario("release", .settle) {
      $0.useRich()
      let id = try $0.reserve("acme/ann", ("tokens", 6), ("runs", 1))
      return command($0, try $0.step(.release, "acme/ann", id))
    },
    Scenario("extend", .settle) {
      $0.useRich()
      let id = try $0.reserve("acme/ann", ("tokens", 6))
      return command($0, try $0.step(.extend(ttlMilliseconds: 900_000), "acme/ann", id))
    },
    Scenario("expire", .expire) {
      $0.useRich()
      let ids = [
        try $0.reserve("acme/ann", ("tokens", 3), ("runs", 1), ttl: 1000),
        try $0.reserve("acme/ann", ("tokens", 2), ttl: 2000),
      ]
      _ = try $0.reserve("acme/ann", ("tokens", 1))
      try $0.advance(8000)
      return command($0, try $0.expire("acme/ann", ids))
    },
    Scenario("hold that was lost with an epoch", .represent) { rig in
      rig.useRich()
      _ = try rig.reserve("acme/ann", ("tokens", 3), ("runs", 1))
      let hold = try rig.read(Reads.holds(rig.keySpace, account: try Subject("acme"))).first
      try rig.redis.command("FLUSHALL")
      try rig.setNow(rig.now)
      try rig.open(epoch: 2, hadPredecessor: true)
      try rig.seed()
      return command(
        rig,
        RepresentCall(
          keySpace: rig.keySpace, fence: rig.fence, subject: try Subject("acme/ann"), hold: hold))
    },
    Scenario("hold of an older epoch", .represent) { rig in
      rig.useRich()
      _ = try rig.reserve("acme/ann", ("tokens", 3), ("runs", 1))
      let hold = try rig.read(Reads.holds(rig.keySpace, account: try Subject("acme"))).first
      try rig.open(epoch: 2, hadPredecessor: true)
      try rig.seed()
      return command(
        rig,
        RepresentCall(
          keySpace: rig.keySpace, fence: rig.fence, subject: try Subject("acme/ann"), hold: hold))
    },
    Scenario("hold that was brought and had ended", .represent) { rig in
      let hold = try broughtBack(rig)
      let end = HoldEnd(reservation: hold.reservation, subject: hold.subject, state: .released)
      _ = try rig.run(
        BuryCall(keySpace: rig.keySpace, bucket: 0, fence: rig.fence, ends: [end]))
      return command(
        rig,
        RepresentCall(
          keySpace: rig.keySpace, fence: rig.fence, subject: hold.subject,
          reservation: hold.reservation))
    },
    Scenario("ends of reservations", .bury) { rig in
      let hold = try broughtBack(rig)
      let ends = [
        HoldEnd(reservation: hold.reservation, subject: hold.subject, state: .committed),
        HoldEnd(reservation: rig.newID(), subject: try Subject("acme/bob"), state: .released),
      ]
      return command(
        rig, BuryCall(keySpace: rig.keySpace, bucket: 0, fence: rig.fence, ends: ends))
    },
    Scenario("word that all holds are there", .represent) { rig in
      command(
        rig,
        RepresentCall(
          keySpace: rig.keySpace, fence: rig.fence, subject: try Subject("acme"), hold: nil))
    },
    Scenario("cancel of a priced consume", .cancel) { rig in
      rig.useRich()
      let call = try rig.transact("acme/ann", [("tokens", 9)])
      _ = try rig.run(call)
      var cancel = CancelCall(
        keySpace: rig.keySpace, fence: rig.fence, operation: call.operation,
        fingerprint: call.fingerprint, subject: call.subject,
        items: [Item(feature: Catalog.name("tokens"), amount: 9)], recordClass: .volume,
        limits: rig.limits)
      cancel.bodies = [(0, [1]), (1, [2])]
      return command(rig, cancel)
    },
  ]
}
