// What Redis does with leases, written from the design's text and not from the scripts: cells with
// an amount, lessees with an expiry, batches that are done once, deltas that a ledger counts once.
// It checks after every call that no hard limit is exceeded.

import TollgateCore

@testable import TollgateEngine

final class ModelRedis {
  /// What is broken on purpose, to see that somebody notices.
  enum Fault {
    case none
    case expiryFreesEverything
    case batchesAreNotDeduplicated
  }

  struct Lessee {
    var expires: Int64
    var isInDoubt = false
    var seen: UInt64 = 0
    var left: [String: Int64] = [:]
  }

  var grace: Int64 = 5_000

  let fault: Fault
  var now: Int64 = 0
  var ttl: Int64 = 10_000
  var version: Int64 = 1
  var youngUntil: Int64 = 0
  /// By cell; a cell without one is only counted.
  var amounts: [String: Int64] = [:]
  /// Cells whose amount was lowered, or whose bucket was lost: the bound does not hold for them.
  var excused: Set<String> = []
  var settled: [String: Int64] = [:]
  var lessees: [String: [UInt64: Lessee]] = [:]
  /// Each cell's account: where it may be held.
  private var homes: [String: String] = [:]
  /// Leases of something whose time was over.
  private(set) var expiries = 0
  var batches: Set<OperationID> = []
  var decided: [OperationID: Bool] = [:]
  /// By cell, every delta once.
  var ledger: [String: Int64] = [:]
  private var posted: Set<DeltaID> = []
  /// Lessees that said they were over: an old copy of a call of theirs is granted nothing.
  private var closed: Set<UInt64> = []
  private(set) var violations: [String] = []
  private(set) var exchanges = 0

  init(fault: Fault = .none) { self.fault = fault }

  static func text(_ bytes: [UInt8]) -> String { String(decoding: bytes, as: UTF8.self) }

  func held(_ cell: String) -> Int64 {
    guard let account = homes[cell], let lessees = lessees[account] else { return 0 }
    return lessees.values.reduce(0) { $0 + ($1.left[cell] ?? 0) }
  }

  /// Of the cells in which something was added.
  private func audit(_ what: String, _ cells: some Sequence<String>) {
    for cell in cells where !excused.contains(cell) {
      guard let amount = amounts[cell] else { continue }
      let (used, held) = (settled[cell] ?? 0, held(cell))
      if used + held > amount {
        violations.append("\(what): \(cell) settled \(used) + held \(held) > \(amount)")
      }
    }
  }

  /// The counters of one delta: every cell of the account's part that its item counts in is named
  /// by the settles, so here only the ledger's sum is kept.
  private func post(_ exchange: LeaseExchange) {
    for (index, delta) in exchange.deltas.enumerated() {
      let id = DeltaID(operation: exchange.id, index: UInt16(index))
      guard posted.insert(id).inserted || fault == .batchesAreNotDeduplicated else { continue }
      for cell in Self.text(delta.definition).split(separator: ",") {
        ledger[String(cell), default: 0] += delta.amount
      }
    }
  }

  func exchange(_ exchange: LeaseExchange) -> [LeaseReply] {
    exchanges += 1
    precondition(Set(exchange.accounts.map(\.lessee)).count <= 1, "a call is one lessee's")
    let isDone =
      !exchange.deltas.isEmpty && !batches.insert(exchange.id).inserted
      && fault != .batchesAreNotDeduplicated
    if !isDone { post(exchange) }
    let replies = exchange.accounts.map { one($0, settles: !isDone) }
    audit(
      "exchange", exchange.accounts.flatMap { $0.portions.map { Self.text($0.key.name) } })
    return replies
  }

  private func one(_ account: LeaseExchange.Account, settles: Bool) -> LeaseReply {
    let name = Self.text(account.name)
    for portion in account.portions { homes[Self.text(portion.key.name)] = name }
    expire(name)
    var lessee =
      lessees[name]?[account.lessee] ?? Lessee(expires: 0, isInDoubt: false)
    let isNew = lessees[name]?[account.lessee] == nil
    if settles {
      for portion in account.portions {
        let cell = Self.text(portion.key.name)
        settled[cell, default: 0] += portion.settle
        let back = min(max(0, portion.settle), lessee.left[cell] ?? 0)
        if back > 0 { lessee.left[cell, default: 0] -= back }
      }
    }
    lessees[name, default: [:]][account.lessee] = lessee
    let isCurrent = account.ordinal > lessee.seen
    let isStale = account.globalVersion != version
    var isProlonged = false
    if isCurrent, !isStale {
      lessee.seen = account.ordinal
      if lessee.isInDoubt, account.isWhole { lessee.isInDoubt = false }
      if !lessee.isInDoubt {
        lessee.expires = now + ttl
        isProlonged = true
        for portion in account.portions { aim(portion, &lessee, name, account.lessee) }
      }
    } else if isCurrent {
      lessee.seen = account.ordinal
      if isNew { lessee.expires = now + ttl }
    }
    lessees[name, default: [:]][account.lessee] = lessee
    if isStale { return .stale }
    return .held(
      account.portions.map { portion in
        let cell = Self.text(portion.key.name)
        return .init(left: lessee.left[cell] ?? 0, settled: settled[cell] ?? 0, held: held(cell))
      }, isProlonged: isProlonged)
  }

  private func aim(
    _ portion: LeaseExchange.Portion, _ lessee: inout Lessee, _ account: String, _ id: UInt64
  ) {
    let cell = Self.text(portion.key.name)
    guard portion.target >= 0, portion.key.kind != .count, let amount = amounts[cell] else {
      return
    }
    let left = lessee.left[cell] ?? 0
    if portion.target < left {
      lessee.left[cell] = portion.target
      return
    }
    guard portion.target > left, now >= youngUntil, now < portion.key.end, !closed.contains(id)
    else { return }
    lessees[account]?[id] = lessee
    let others = (lessees[account] ?? [:]).filter { $0.key != id && !$0.value.isInDoubt }.count
    let room = amount - (settled[cell] ?? 0) - held(cell)
    guard room >= Int64(2 * (others + 1) + 2) else { return }
    lessee.left[cell] = left + min(portion.target - left, room / Int64(2 * max(1, others)))
  }

  /// Leases whose time is over keep what may have been spent of them, and nothing else.
  func expire(_ account: String) {
    for (id, lessee) in lessees[account] ?? [:]
    where !lessee.isInDoubt && now >= lessee.expires + grace {
      var lessee = lessee
      lessee.isInDoubt = true
      if lessee.left.values.contains(where: { $0 > 0 }) { expiries += 1 }
      for (cell, left) in lessee.left {
        lessee.left[cell] =
          fault == .expiryFreesEverything ? 0 : LeaseRules.ceiling(left: left)
      }
      lessees[account]?[id] = lessee
    }
  }

  func expireAll() {
    for account in lessees.keys { expire(account) }
    audit("expiry", amounts.keys)
  }

  /// Nothing of it is unsettled any more: all of it is freed.
  func close(_ lessee: UInt64) {
    closed.insert(lessee)
    for account in lessees.keys { lessees[account]?[lessee] = nil }
  }

  /// A consume as `decide` does it, its id recorded.
  func decide(_ id: OperationID, account: String, cells: [String], amount: Int64) -> Bool {
    if let answer = decided[id] { return answer }
    expire(account)
    let isAllowed = cells.allSatisfy { cell in
      guard let limit = amounts[cell] else { return true }
      return amount <= limit - (settled[cell] ?? 0) - held(cell)
    }
    decided[id] = isAllowed
    guard isAllowed else { return false }
    for cell in cells {
      settled[cell, default: 0] += amount
      ledger[cell, default: 0] += amount
    }
    audit("decide", cells)
    return true
  }

  /// CANCEL of what was decided here, or never came.
  func cancel(_ id: OperationID, cells: [String], amount: Int64) {
    if decided[id] == true {
      for cell in cells {
        settled[cell, default: 0] -= amount
        ledger[cell, default: 0] -= amount
      }
    }
    decided[id] = false
  }

  /// The bucket is rebuilt from the ledger: leases and records are gone.
  func lose() {
    settled = ledger
    lessees = [:]
    batches = []
    youngUntil = now + 1_000
    excused.formUnion(amounts.keys)
  }
}
