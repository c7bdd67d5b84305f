// What a lessee hears of an exchange. Nothing here traps on a strange reply: it is `error`.

package import TollgateCore

package struct LeaseAnswer: Hashable, Sendable {
  package struct Portion: Hashable, Sendable {
    package var left: Int64
    /// As limits see it, of the portion's period; of a rate the arrival time, ms.
    package var settled: Int64
    /// By everybody; of a rate 0.
    package var held: Int64
  }

  /// The configuration is another: what was used is settled, and the lease has ended.
  package struct Stale: Hashable, Sendable {
    package var globalVersion: Int64
    package var accountVersion: Int64?
    /// Only where the account's version is another.
    package var accountConfig: String?
  }

  /// Why nothing may have been granted.
  package struct Flags: OptionSet, Hashable, Sendable {
    package let rawValue: Int64
    package init(rawValue: Int64) { self.rawValue = rawValue }

    /// Leases of the account are due to end (`LeaseEndCall`), or may be.
    package static let due = Flags(rawValue: 1)
    package static let recalled = Flags(rawValue: 2)
    package static let crowded = Flags(rawValue: 4)
    package static let young = Flags(rawValue: 8)
  }

  package var stale: Stale?
  package var flags: Flags
  /// Redis time at which the lease ends; nil: there is none that may be spent.
  package var expires: WallTime?
  /// In the order of the call.
  package var portions: [Portion]

  init?(_ bytes: [UInt8], portions count: Int) {
    var reader = MessagePackReader(bytes)
    guard let code = reader.integer(), let flags = reader.integer(), let expires = reader.integer()
    else { return nil }
    self.flags = Flags(rawValue: flags)
    self.expires = expires > 0 ? WallTime(milliseconds: expires) : nil
    portions = []
    portions.reserveCapacity(count)
    for _ in 0..<count {
      guard let left = reader.integer(), let settled = reader.integer(), let held = reader.integer()
      else { return nil }
      portions.append(Portion(left: left, settled: settled, held: held))
    }
    guard code == ReplyCode.stale.rawValue else {
      guard code == ReplyCode.done.rawValue else { return nil }
      return
    }
    guard let version = reader.integer(), let account = reader.integer(),
      let config = reader.text()
    else { return nil }
    stale = Stale(
      globalVersion: version, accountVersion: account < 0 ? nil : account,
      accountConfig: config.isEmpty ? nil : config)
  }
}

package enum LeaseOutcome: Hashable, Sendable {
  /// One answer per account. `isReplay`: what it settles had been settled before.
  case answered([LeaseAnswer], now: WallTime, isReplay: Bool)
  /// Nothing was done: these accounts (places in the call) are not seeded in this epoch. Seed them
  /// and send the very same call.
  case unseeded([Int])
  /// Nothing was done, and nobody can tell whether an earlier copy was: append its deltas by
  /// `RepostCall`.
  case tooOld
  case fromFuture
  case fenced(FenceState)
  /// A counter would leave the quantity range; nothing was done.
  case overflow(account: Int, portion: Int)
  case error(String)

  init(_ reply: RESPReply, to call: LeaseCall) {
    switch reply.code {
    case .done?, .replayed?:
      guard let now = reply[1].number, reply.array?.count == call.accounts.count + 3 else {
        self = .error("unexpected reply \(reply)")
        return
      }
      var answers: [LeaseAnswer] = []
      answers.reserveCapacity(call.accounts.count)
      for (at, account) in call.accounts.enumerated() {
        guard
          let answer = reply[at + 3].bytes.flatMap({
            LeaseAnswer($0, portions: account.portions.count)
          })
        else {
          self = .error("undecodable answer")
          return
        }
        answers.append(answer)
      }
      self = .answered(
        answers, now: WallTime(milliseconds: now), isReplay: reply.code == .replayed)
    case .rebuild?:
      let places = (reply.array ?? []).dropFirst().compactMap { $0.integer.map { Int($0) - 1 } }
      self = .unseeded(places.filter { call.accounts.indices.contains($0) })
    case .tooOld?: self = .tooOld
    case .fromFuture?: self = .fromFuture
    case .fenced?: self = .fenced(reply.fenceState)
    case .overflow?:
      self = .overflow(
        account: Int(reply[1].integer ?? 0) - 1, portion: Int(reply[2].integer ?? 0) - 1)
    default: self = .error(reply.problem)
    }
  }
}
