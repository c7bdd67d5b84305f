// One reservation while the block that uses it runs, as a value: what was used, when the hold wants
// to be prolonged, and how it ends. No clock, no client; the shell (Reservation, +Reservations)
// carries out what is decided here.
//
//   used ─▶ pending ──draw──▶ told    (settled as it goes; put back where that was refused)
//              └─────end────▶ settle | release | leave
//
// Promises: what was told as used is settled or handed back, never forgotten; nothing is released
// unless the block said that nothing was used.

internal import TollgateCore

struct ReservationMachine {
  /// How the block was left.
  enum Exit: Hashable {
    case returned
    /// It threw, or its task was cancelled: what it told is the least that was used.
    case cut
  }

  enum Ending: Hashable {
    case settle([Item], isFinal: Bool, isFloor: Bool)
    case release
    /// Nothing is known, and nothing may be guessed: the hold expires, and until a day later its
    /// use can still be told.
    case leave
    /// It is over, and everything was told.
    case none
  }

  /// A failed extension is repeated no sooner than this (ns).
  static let extendPauseMin: Int64 = 20_000_000
  /// A hold is whole for so long (ns) after its expiry; asked for less than that, it still lives.
  static let grace = HoldBounds.grace * 1_000_000

  /// In the order of the reserve.
  let features: [Name]
  private var pending: [Name: Int64] = [:]
  /// Units in all, of the features that were spoken of.
  private var totals: [Name: Int64] = [:]
  private var saysNothing = false
  /// When the hold expires, as far as is known; nil: nothing is held.
  private(set) var expiry: MonotonicTime?
  /// When to ask for its extension; nil: not any more.
  private(set) var nextExtension: MonotonicTime?
  /// The hold was gone before the block ended. A settle still finds what was used.
  private(set) var isLost = false
  /// A settle before the last one found the hold expired, and ended the reservation.
  private var isOver = false
  private var hasDrawn = false
  /// The last settle could charge only a part: the limit is reached.
  private(set) var isLimitReached = false

  /// - Parameters:
  ///   - reserved: the answer to the reserve.
  ///   - sent: when that was asked, at the earliest.
  init(_ estimate: [Item], reserved: Decision, sent: MonotonicTime) {
    features = estimate.map(\.feature)
    held(reserved, sent)
    // A recorded answer does not say that the hold still lives.
    if reserved.replayed, expiry != nil { nextExtension = sent }
  }

  // MARK: what was used

  /// So much more was used.
  mutating func used(_ items: [Item]) throws(TollgateError) {
    var pending = pending
    var totals = totals
    for item in items {
      guard features.contains(item.feature) else {
        throw .rejected(
          .badRequest, message: "\(item.feature) is no feature of this reservation")
      }
      guard item.amount >= 0, let left = Quantity.adding(pending[item.feature] ?? 0, item.amount),
        let total = Quantity.adding(totals[item.feature] ?? 0, item.amount)
      else {
        throw .rejected(.amountOutOfRange, message: "\(item.amount) of \(item.feature)")
      }
      pending[item.feature] = left
      totals[item.feature] = total
    }
    self.pending = pending
    self.totals = totals
  }

  mutating func usedNothing() { saysNothing = true }

  /// Units told so far, settled or not.
  var total: [Item] {
    features.compactMap { feature in
      totals[feature].map { Item(feature: feature, amount: $0) }
    }
  }

  // MARK: settling as it goes

  /// What is to be settled now; empty: nothing.
  mutating func draw() -> [Item] {
    let items = pendingItems
    pending = [:]
    return items
  }

  mutating func drawn(_ decision: Decision) {
    hasDrawn = true
    isLimitReached = decision.reason == .settledClamped
    guard decision.reason == .settledLate else { return }
    isOver = true
    isLost = true
    nextExtension = nil
  }

  /// It was certainly not applied: the next settle tells it.
  mutating func undrawn(_ items: [Item]) {
    for item in items { pending[item.feature, default: 0] += item.amount }
  }

  private var pendingItems: [Item] {
    features.compactMap { feature in
      guard let amount = pending[feature], amount > 0 else { return nil }
      return Item(feature: feature, amount: amount)
    }
  }

  // MARK: staying alive

  mutating func extended(_ decision: Decision, sent: MonotonicTime) {
    if decision.isAllowed { held(decision, sent) } else { extensionFailed(sent) }
  }

  /// Gone for good, where that is what the sidecar said.
  mutating func extensionFailed(_ error: TollgateError, _ now: MonotonicTime) {
    switch error {
    case .rejected(.reservationEnded, _), .rejected(.reservationUnknown, _): lost()
    case .rejected, .notSent, .outcomeUnknown: extensionFailed(now)
    }
  }

  /// Again at half of what is left, as long as the hold may live.
  private mutating func extensionFailed(_ now: MonotonicTime) {
    guard let expiry else { return }
    let left = expiry + Self.grace - now
    guard left > 0 else { return lost() }
    nextExtension = now + max(Self.extendPauseMin, min(left, expiry - now) / 2)
  }

  private mutating func lost() {
    isLost = true
    nextExtension = nil
  }

  private mutating func held(_ decision: Decision, _ sent: MonotonicTime) {
    guard let expires = decision.expires else { return }
    let life = (expires - decision.time) * 1_000_000
    expiry = sent + life
    nextExtension = sent + life / 2
  }

  // MARK: the end

  mutating func end(_ exit: Exit) -> Ending {
    nextExtension = nil
    let rest = draw()
    if isOver {
      // Only a settle that does not claim to end it is told beside the one that did.
      return rest.isEmpty ? .none : .settle(rest, isFinal: false, isFloor: false)
    }
    if saysNothing, totals.values.allSatisfy({ $0 == 0 }) { return .release }
    if exit == .cut, totals.isEmpty { return .leave }
    let known = Dictionary(uniqueKeysWithValues: rest.map { ($0.feature, $0.amount) })
    let isWhole = exit == .returned && features.allSatisfy { totals[$0] != nil }
    return .settle(
      features.map { Item(feature: $0, amount: known[$0] ?? 0) }, isFinal: true,
      isFloor: !isWhole)
  }
}
