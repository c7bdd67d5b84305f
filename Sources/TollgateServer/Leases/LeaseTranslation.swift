// An exchange as the lease table describes it, as the call that Redis gets; and the answer back.
// Both sides name the same things by other words: the engine keeps bytes, the store knows subjects,
// features and periods. Hot subjects are named again with every settle, so what was read once is
// remembered: reading costs ten times what looking it up does.

import TollgateCore
import TollgateEngine
import TollgateRedis
import TollgateWire

enum LeaseTranslation {
  /// Bytes that this sidecar did not write, or a release that was. Nothing of such an exchange can
  /// be sent.
  struct Unreadable: Error {
    let what: String
  }

  /// What was read before, of one loop. Each table is emptied where it would grow beyond `max`.
  struct Memory {
    fileprivate struct Delta: Hashable {
      var key: [UInt8]
      var definition: [UInt8]
      var item: Int
    }

    static let max = 8192

    fileprivate var subjects: [[UInt8]: Subject] = [:]
    fileprivate var portions: [LeasePortionKey: LeasePortion] = [:]
    /// nil: it is not metered.
    fileprivate var bodies: [Delta: [UInt8]?] = [:]

    fileprivate mutating func subject(_ name: [UInt8]) throws(Unreadable) -> Subject {
      if let found = subjects[name] { return found }
      guard let subject = try? Subject(String(decoding: name, as: UTF8.self)) else {
        throw Unreadable(what: "an account")
      }
      if subjects.count >= Self.max { subjects = [:] }
      subjects[name] = subject
      return subject
    }

    fileprivate mutating func portion(
      _ portion: LeaseExchange.Portion
    ) throws(Unreadable) -> LeasePortion {
      var found: LeasePortion
      if let known = portions[portion.key] {
        found = known
      } else {
        found = try LeaseTranslation.portion(portion.key)
        if portions.count >= Self.max { portions = [:] }
        portions[portion.key] = found
      }
      found.settle = portion.settle
      found.target = portion.target < 0 ? nil : portion.target
      return found
    }

    fileprivate mutating func body(
      _ delta: LeaseExchange.Delta, at time: WallTime
    ) throws(Unreadable) -> [UInt8]? {
      let name = Delta(key: delta.key, definition: delta.definition, item: delta.item)
      if let known = bodies[name] { return known }
      let (body, isLasting) = try LeaseTranslation.body(delta, at: time)
      guard isLasting else { return body }
      if bodies.count >= Self.max { bodies = [:] }
      bodies[name] = .some(body)
      return body
    }
  }

  static func call(
    _ exchange: LeaseExchange, keys: KeySpace, bucket: Int, fence: Fence, ttlMilliseconds: Int64,
    outboxEntriesMax: Int64, memory: inout Memory
  ) throws(Unreadable) -> LeaseCall {
    var accounts: [TollgateRedis.LeaseAccount] = []
    accounts.reserveCapacity(exchange.accounts.count)
    // Those of an account lie side by side, in the order of the accounts; else they are put so.
    let isOrdered = zip(exchange.deltas, exchange.deltas.dropFirst())
      .allSatisfy { $0.account <= $1.account }
    var rest = exchange.deltas[...]
    if !isOrdered {
      rest =
        exchange.accounts.indices.flatMap { place in
          exchange.deltas.filter { $0.account == place }
        }[...]
    }
    for (place, account) in exchange.accounts.enumerated() {
      let subject = try memory.subject(account.name)
      var portions: [LeasePortion] = []
      portions.reserveCapacity(account.portions.count)
      for place in order(account) {
        portions.append(try memory.portion(account.portions[place]))
      }
      var deltas: [LeaseDelta] = []
      while let delta = rest.first, delta.account == place {
        if let body = try memory.body(delta, at: exchange.id.time) {
          deltas.append(LeaseDelta(amount: delta.amount, body: body))
        }
        rest.removeFirst()
      }
      accounts.append(
        TollgateRedis.LeaseAccount(
          account: subject, globalVersion: account.globalVersion,
          accountVersion: account.accountVersion, ordinal: Int64(clamping: account.ordinal),
          isWhole: account.isWhole, portions: portions, deltas: deltas))
    }
    guard rest.isEmpty else { throw Unreadable(what: "whose deltas these are") }
    guard let lessee = exchange.accounts.first?.lessee else { throw Unreadable(what: "nothing") }
    return LeaseCall(
      keySpace: keys, bucket: bucket, fence: fence, lessee: LesseeID(lessee),
      operation: exchange.id, timeToLiveMilliseconds: ttlMilliseconds,
      outboxEntriesMax: outboxEntriesMax, accounts: accounts)
  }

  /// The older period of a counter is settled before the younger one takes its place.
  private static func order(_ account: LeaseExchange.Account) -> [Int] {
    account.portions.indices.sorted {
      (account.portions[$0].key.start, $0) < (account.portions[$1].key.start, $1)
    }
  }

  /// With nothing to settle, and no target.
  private static func portion(_ key: LeasePortionKey) throws(Unreadable) -> LeasePortion {
    guard let counter = LeaseCounter(bytes: key.name), let rules = LeaseRule.rules(key.limits)
    else {
      throw Unreadable(what: "a counter")
    }
    switch counter.place {
    case .rate(let limit):
      guard case .rate(let interval, let tolerance)? = rules.first else {
        throw Unreadable(what: "a rate")
      }
      return LeasePortion(
        subject: counter.subject, feature: counter.feature,
        source: .rate(
          limit: limit, intervalMicroseconds: interval, toleranceMicroseconds: tolerance))
    case .window(let window):
      guard key.start < key.end else { throw Unreadable(what: "a period") }
      return LeasePortion(
        subject: counter.subject, feature: counter.feature,
        source: .cell(
          window: window,
          period: Period(
            start: WallTime(milliseconds: key.start), end: WallTime(milliseconds: key.end))),
        bounds: rules.compactMap { rule in
          switch rule {
          case .quota(let amount): .quota(amount: amount)
          case .sliding(let amount, let length):
            .sliding(amount: amount, lengthMilliseconds: length)
          case .grant(let amount, let others): .grant(amount: amount, others: others)
          case .rate: nil
          }
        })
    }
  }

  /// What the ledger gets of a delta; nil: it is counted, and nobody bills it. `isLasting`: it is
  /// the same whenever it is asked for.
  private static func body(
    _ delta: LeaseExchange.Delta, at time: WallTime
  ) throws(Unreadable) -> ([UInt8]?, isLasting: Bool) {
    guard let record = try? OperationRecord(shape: delta.key),
      let definition = LeaseDefinition(bytes: delta.definition),
      record.items.indices.contains(delta.item), definition.items.indices.contains(delta.item)
    else { throw Unreadable(what: "a shape") }
    let item = definition.items[delta.item]
    guard item.isMetered else { return (nil, true) }
    let billing = item.cells.first { $0.level == 1 && $0.window == .month }
    let cells = item.cells.filter { $0.window.tally == .units }
    // A grant that covered it.
    let parts = item.cells.filter { $0.window.tally != .units }.map {
      CountedPart(level: $0.level, window: $0.window, period: $0.period, amount: delta.amount)
    }
    let body = UsageBody(
      subject: record.subject, feature: record.items[delta.item].feature,
      period: billing?.period ?? Window.month.period(containing: time), cells: cells,
      catalogVersion: definition.catalogVersion, source: .lease, attributes: record.attributes,
      parts: parts)
    return (body.encode(), billing != nil && parts.isEmpty)
  }

  /// In the order of the exchange's accounts and portions.
  static func replies(
    _ answers: [LeaseAnswer], to exchange: LeaseExchange, at now: WallTime, ttlMilliseconds: Int64
  ) -> [LeaseReply] {
    zip(answers, exchange.accounts).map { answer, account in
      guard answer.stale == nil else { return .stale }
      var portions = [LeaseReply.Portion](
        repeating: .init(left: 0, settled: 0, held: 0), count: account.portions.count)
      for (place, state) in zip(order(account), answer.portions) {
        portions[place] = .init(left: state.left, settled: state.settled, held: state.held)
      }
      let isProlonged = answer.expires.map { $0 - now >= ttlMilliseconds } ?? false
      return .held(portions, isProlonged: isProlonged)
    }
  }
}
