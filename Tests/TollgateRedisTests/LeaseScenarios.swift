// Ways to run the scripts of leases, each with the state it needs.

import TollgateCore
import TollgateTesting

@testable import TollgateRedis

extension Scenario {
  static let leases: [Scenario] = [
    Scenario("first lease of an account", .lease) { rig in
      var one = TestLessee(1)
      return command(rig, try one.exchange(rig, "acme", "tokens", settle: 1, target: 50))
    },
    Scenario("first lease of a member", .lease) { rig in
      lease(rig)
      var one = TestLessee(1)
      return command(rig, try one.exchange(rig, "acme/ann", "chat", settle: 1, target: 50))
    },
    Scenario("lease of a member of an older epoch, and of another that lives longer", .lease) {
      rig in
      lease(rig)
      _ = try rig.consume("acme/ann", ("chat", 1))
      try rig.open(epoch: 2, hadPredecessor: true)
      try rig.seed()
      _ = try rig.consume("acme/bob", ("chat", 1), mode: .post)
      try rig.advance(90_000_000)
      var one = TestLessee(1)
      let ann = try one.exchange(rig, "acme/ann", "chat", settle: 2, target: 50).accounts[0]
      var bob = try one.exchange(rig, "acme/bob", "chat", settle: 3, target: 50).accounts[0]
      bob.portions += ann.portions.filter { $0.subject.depth > 1 }
      bob.deltas += ann.deltas
      return command(rig, one.call(rig, [bob]))
    },
    Scenario("exchange of a lease that stands", .lease) { rig in
      lease(rig)
      var one = TestLessee(1)
      var two = TestLessee(2)
      _ = try rig.run(one.exchange(rig, "acme/ann", "chat", settle: 1, target: 50))
      _ = try rig.run(two.exchange(rig, "acme/ann", "chat", target: 50))
      try rig.seed("other")
      let accounts = [
        try one.exchange(rig, "acme/ann", "chat", settle: 9, target: 80).accounts[0],
        try one.exchange(rig, "other", "tokens", settle: 3, target: 8).accounts[0],
      ]
      return command(rig, one.call(rig, accounts))
    },
    Scenario("last exchange of all, after units were asked back", .lease) { rig in
      lease(rig)
      var one = TestLessee(1)
      _ = try rig.run(one.exchange(rig, "acme/ann", "chat", settle: 1, target: 50))
      _ = try rig.run(recall(rig, by: TestLessee(2)))
      return command(rig, try one.exchange(rig, "acme/ann", "chat", settle: 5, target: 0))
    },
    Scenario("exchange under another configuration", .lease) { rig in
      lease(rig)
      var one = TestLessee(1)
      _ = try rig.run(one.exchange(rig, "acme/ann", "chat", settle: 1, target: 50))
      rig.account.version = 0
      return command(rig, try one.exchange(rig, "acme/ann", "chat", settle: 5, target: 80))
    },
    Scenario("repeat of an exchange that asks for more", .lease) { rig in
      var one = TestLessee(1)
      var call = try one.exchange(rig, "acme", "tokens", settle: 1, target: 50)
      _ = try rig.run(call)
      call.accounts[0].ordinal += 1
      call.accounts[0].portions[0].target = 70
      return command(rig, call)
    },
    Scenario("leases that come into doubt", .leaseEnd) { rig in
      lease(rig)
      return try ending(rig, leases: 2)
    },
    Scenario("a doubt that is over", .leaseEnd) { rig in
      lease(rig)
      var command = try ending(rig, leases: 1)
      _ = try rig.redis.pipeline([command])
      try rig.advance(LeaseRules.horizonMilliseconds)
      command = try end(rig)
      return command
    },
    Scenario("the end of all that a closed lessee holds", .leaseEnd) { rig in
      lease(rig)
      var one = TestLessee(1)
      _ = try rig.run(one.exchange(rig, "acme/ann", "chat", settle: 2, target: 50))
      return try end(rig, closed: [one.id])
    },
    Scenario("the close of a lessee", .leaseClose) { rig in
      var one = TestLessee(1)
      _ = try rig.run(one.exchange(rig, "acme", "tokens", settle: 1, target: 50))
      return close(rig, one.id)
    },
    Scenario("the close of a lessee never seen", .leaseClose) { rig in
      close(rig, LesseeID(7))
    },
    Scenario("units asked back", .recall) { rig in
      lease(rig)
      var one = TestLessee(1)
      _ = try rig.run(one.exchange(rig, "acme/ann", "chat", target: 50))
      return command(rig, try recall(rig, by: TestLessee(2)))
    },
  ]

  /// Room for leases where the example has little.
  private static func lease(_ rig: StoreRig) {
    let chat = Catalog.name("chat")
    rig.global.catalog.features[chat]?.idempotency = .sidecar
    rig.global.catalog.plans[Catalog.name("pro")]?.entitlements[chat] = [
      Catalog.limit("chat.day", .quota(amount: 1000, window: .day)),
      Catalog.limit("chat.member", .quota(amount: 600, window: .lifetime), level: 2),
      Catalog.limit(
        "chat.smooth", .sliding(amount: 600, lengthMilliseconds: 60_000), level: 2),
      Catalog.limit(
        "chat.rate", .rate(amount: 6000, periodMilliseconds: 60_000, burst: 800), level: 2),
    ]
  }

  private static func recall(_ rig: StoreRig, by asker: TestLessee) throws -> RecallCall {
    RecallCall(
      keySpace: rig.keySpace, fence: rig.fence, account: try Subject("acme"), asker: asker.id,
      wanted: [.init(subject: try Subject("acme/ann"), field: "chat|L")])
  }

  private static func end(_ rig: StoreRig, closed: [LesseeID] = []) throws -> [[UInt8]] {
    command(
      rig,
      LeaseEndCall(
        keySpace: rig.keySpace, fence: rig.fence, account: try Subject("acme"),
        leases: try rig.leases(), closed: closed))
  }

  private static func close(_ rig: StoreRig, _ lessee: LesseeID) -> [[UInt8]] {
    command(
      rig, LeaseCloseCall(keySpace: rig.keySpace, bucket: 0, fence: rig.fence, lessee: lessee))
  }

  private static func ending(_ rig: StoreRig, leases: UInt64) throws -> [[UInt8]] {
    for number in 1...leases {
      var lessee = TestLessee(number)
      _ = try rig.run(lessee.exchange(rig, "acme/ann", "chat", target: 50))
      _ = try rig.run(lessee.exchange(rig, "acme/bob", "chat", settle: 3, target: 50))
    }
    try rig.advance(60_000)
    return try end(rig)
  }
}
