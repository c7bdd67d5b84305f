// An exchange as the lease table describes it, as the call that Redis gets; and the answer back.
// Both sides name the same things by other words: the engine keeps bytes, the store knows subjects,
// features and periods.

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

  static func call(
    _ exchange: LeaseExchange, keys: KeySpace, bucket: Int, fence: Fence, ttlMilliseconds: Int64,
    outboxEntriesMax: Int64
  ) throws(Unreadable) -> LeaseCall {
    var accounts: [TollgateRedis.LeaseAccount] = []
    accounts.reserveCapacity(exchange.accounts.count)
    for (place, account) in exchange.accounts.enumerated() {
      guard let subject = try? Subject(String(decoding: account.name, as: UTF8.self)) else {
        throw Unreadable(what: "an account")
      }
      var portions: [LeasePortion] = []
      portions.reserveCapacity(account.portions.count)
      for place in order(account) { portions.append(try portion(account.portions[place])) }
      accounts.append(
        TollgateRedis.LeaseAccount(
          account: subject, globalVersion: account.globalVersion,
          accountVersion: account.accountVersion, ordinal: Int64(clamping: account.ordinal),
          isWhole: account.isWhole, portions: portions,
          deltas: try deltas(of: place, exchange)))
    }
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

  private static func portion(
    _ portion: LeaseExchange.Portion
  ) throws(Unreadable) -> LeasePortion {
    guard let counter = LeaseCounter(bytes: portion.key.name),
      let rules = LeaseRule.rules(portion.key.limits)
    else { throw Unreadable(what: "a counter") }
    let target = portion.target < 0 ? nil : portion.target
    switch counter.place {
    case .rate(let limit):
      guard case .rate(let interval, let tolerance)? = rules.first else {
        throw Unreadable(what: "a rate")
      }
      return LeasePortion(
        subject: counter.subject, feature: counter.feature,
        source: .rate(
          limit: limit, intervalMicroseconds: interval, toleranceMicroseconds: tolerance),
        settle: portion.settle, target: target)
    case .window(let window):
      guard portion.key.start < portion.key.end else { throw Unreadable(what: "a period") }
      return LeasePortion(
        subject: counter.subject, feature: counter.feature,
        source: .cell(
          window: window,
          period: Period(
            start: WallTime(milliseconds: portion.key.start),
            end: WallTime(milliseconds: portion.key.end))),
        settle: portion.settle, target: target,
        bounds: rules.compactMap { rule in
          switch rule {
          case .quota(let amount): .quota(amount: amount)
          case .sliding(let amount, let length):
            .sliding(amount: amount, lengthMilliseconds: length)
          case .rate: nil
          }
        })
    }
  }

  private static func deltas(
    of account: Int, _ exchange: LeaseExchange
  ) throws(Unreadable) -> [LeaseDelta] {
    var deltas: [LeaseDelta] = []
    for delta in exchange.deltas where delta.account == account {
      guard let record = try? OperationRecord(shape: delta.key),
        let definition = LeaseDefinition(bytes: delta.definition),
        record.items.indices.contains(delta.item), definition.items.indices.contains(delta.item)
      else { throw Unreadable(what: "a shape") }
      let item = definition.items[delta.item]
      // What is not metered is counted, and nobody bills it.
      guard item.isMetered else { continue }
      let billing = item.cells.first { $0.level == 1 && $0.window == .month }
      deltas.append(
        LeaseDelta(
          amount: delta.amount,
          body: UsageBody(
            subject: record.subject, feature: record.items[delta.item].feature,
            period: billing?.period ?? Window.month.period(containing: exchange.id.time),
            cells: item.cells, catalogVersion: definition.catalogVersion, source: .lease,
            attributes: record.attributes
          ).encode()))
    }
    return deltas
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
