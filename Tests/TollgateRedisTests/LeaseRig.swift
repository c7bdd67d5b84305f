// The words in which tests of leases speak: a lessee exchanges, holds, settles.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

/// One lessee towards one account, as a sidecar would drive it: ordinals rise, ids ascend.
struct TestLessee {
  var id: LesseeID
  var ttl: Int64 = 10_000
  var ordinal: Int64 = 0

  init(_ number: UInt64) { id = LesseeID(number) }

  /// An exchange about one feature of one subject: the same units and target for each portion.
  mutating func exchange(
    _ rig: StoreRig, _ subject: String, _ feature: String, settle: Int64 = 0,
    target: Int64? = nil, isWhole: Bool = false, bodies: Bool = true
  ) throws -> LeaseCall {
    let subject = try Subject(subject)
    let resolution = rig.resolve(subject, [Item(feature: try Name(feature), amount: 1)])
    var portions = LeasePortion.all(of: resolution, subject: subject)
    for at in portions.indices {
      portions[at].settle = settle
      portions[at].target = target
    }
    let deltas =
      settle == 0 || !bodies
      ? [] : [LeaseDelta(amount: settle, body: Array("\(subject) \(feature)".utf8))]
    return call(
      rig, [account(rig, subject.account, portions, deltas, isWhole: isWhole)])
  }

  mutating func account(
    _ rig: StoreRig, _ account: Subject, _ portions: [LeasePortion], _ deltas: [LeaseDelta],
    isWhole: Bool = false
  ) -> LeaseAccount {
    ordinal += 1
    return LeaseAccount(
      account: account, globalVersion: rig.global.version, accountVersion: rig.account.version,
      ordinal: ordinal, isWhole: isWhole, portions: portions, deltas: deltas)
  }

  func call(_ rig: StoreRig, _ accounts: [LeaseAccount]) -> LeaseCall {
    LeaseCall(
      keySpace: rig.keySpace, bucket: 0, fence: rig.fence, lessee: id, operation: rig.newID(),
      timeToLiveMilliseconds: ttl, outboxEntriesMax: rig.limits.outboxEntriesMax,
      accounts: accounts)
  }
}

extension LeaseOutcome {
  var answers: [LeaseAnswer]? {
    if case .answered(let answers, _, _) = self { answers } else { nil }
  }
  var isReplay: Bool { if case .answered(_, _, true) = self { true } else { false } }
  /// Of the first portion.
  var left: Int64? { answers?.first?.portions.first?.left }
}

extension StoreRig {
  /// The sequence of the first delta that the answer names.
  func first(of call: LeaseCall) throws -> Int64 {
    call.firstSequence(RESPReply(try redis.pipeline([Self.command(call, library)])[0]))
  }

  /// `tokens` has one quota of a month, `chat` one at each of two levels and a rate.
  static func leased(
    amount: Int64 = 1000, options: RedisServerProcess.Options = .init(),
    transform: (ScriptName, String) -> String = { testClock($1) }
  ) throws -> StoreRig {
    var catalog = Catalog.example
    catalog.plans[Catalog.name("pro")]?.entitlements[Catalog.name("tokens")] = [
      Catalog.limit("tokens.month", .quota(amount: amount, window: .month))
    ]
    catalog.plans[Catalog.name("pro")]?.entitlements[Catalog.name("chat")] = [
      Catalog.limit("chat.month", .quota(amount: amount, window: .month)),
      Catalog.limit("chat.member", .quota(amount: amount, window: .lifetime), level: 2),
      Catalog.limit(
        "chat.rate", .rate(amount: 1000, periodMilliseconds: 1000, burst: 1000), level: 2),
    ]
    for name in ["tokens", "chat"] { catalog.features[Catalog.name(name)]?.idempotency = .sidecar }
    return try ready(catalog: catalog, options: options, transform: transform)
  }

  func leases(_ account: String = "acme") throws -> [StoredLease] {
    try read(Reads.leases(keySpace, account: try Subject(account)))
  }

  func cell(_ subject: String, _ feature: String, _ window: Window) throws -> CounterCell? {
    try counters(subject).cell(feature: try Name(feature), window: window)
  }

  func close(_ lessee: LesseeID) throws {
    let call = LeaseCloseCall(keySpace: keySpace, bucket: 0, fence: fence, lessee: lessee)
    guard case .done(now) = try run(call) else { throw MiniRedisError.reply("not closed") }
  }

  @discardableResult
  func endLeases(
    _ account: String = "acme", releases: [LesseeID] = [], closed: [LesseeID] = []
  ) throws -> LeaseEndCall.Ended {
    let call = LeaseEndCall(
      keySpace: keySpace, fence: fence, account: try Subject(account), leases: try leases(account),
      releases: releases, closed: closed)
    let reply = try run(call)
    guard case .done(.done(let ended)) = reply else { throw MiniRedisError.reply("\(reply)") }
    return ended
  }

  /// Of a feature's cell of a subject, what all leases of the account have left.
  func leftOfAll(_ subject: String, _ field: String, account: String = "acme") throws -> Int64 {
    let subject = try Subject(subject)
    return try leases(account).flatMap(\.portions)
      .filter { $0.subject == subject && $0.field == field }.reduce(0) { $0 + $1.left }
  }
}
