// The typed answer to an operation: a check, a consume, a step of a reservation, a refund.

/// One feature and an amount, as asked. Amount 0 … 2^53 − 1.
public struct Item: Hashable, Sendable {
  public var feature: Name
  public var amount: Int64

  public init(feature: Name, amount: Int64) {
    self.feature = feature
    self.amount = amount
  }
}

public struct Decision: Hashable, Sendable {
  /// The state of an item after the decision, seen through its most restrictive limit.
  public struct ItemState: Hashable, Sendable {
    /// The limit that leaves the least; nil where only unlimited or gate limits apply.
    public var limit: Name?
    /// amount − settled − held, never below 0; nil: unlimited.
    public var remaining: Int64?
    public var settled: Int64
    public var held: Int64
    /// When the period ends, or, for a rate, when the bucket is full again; nil: never.
    public var reset: WallTime?

    public init(
      limit: Name? = nil, remaining: Int64? = nil, settled: Int64 = 0, held: Int64 = 0,
      reset: WallTime? = nil
    ) {
      self.limit = limit
      self.remaining = remaining
      self.settled = settled
      self.held = held
      self.reset = reset
    }
  }

  /// What became of one item of a settle or a refund.
  public struct Settlement: Hashable, Sendable {
    /// What was used; of a refund, what came back (not positive).
    public var actual: Int64
    /// What of it is billed.
    public var charged: Int64

    /// What is not: `actual − charged`.
    public var absorbed: Int64 { actual - charged }

    public init(actual: Int64, charged: Int64) {
      self.actual = actual
      self.charged = charged
    }
  }

  /// Units of one item that one grant covered.
  public struct Burn: Hashable, Sendable {
    /// Index of the item, derived ones behind those that were asked for.
    public var item: Int
    /// nil: beyond every grant.
    public var grant: Name?
    /// Negative where units came back.
    public var amount: Int64

    public init(item: Int, grant: Name?, amount: Int64) {
      self.item = item
      self.grant = grant
      self.amount = amount
    }
  }

  public var reason: Reason
  public var source: Source
  /// The limit that decided: the denying one; for an allow, a soft or shadow one that is exceeded.
  public var binding: Name?
  /// Index of the item the binding limit belongs to.
  public var bindingItem: Int?
  /// Milliseconds until the same request can succeed; nil: no such time is known (a permanent
  /// denial, or an allow).
  public var retryAfter: Int64?
  /// Redis time of the decision (the sidecar's own where the source is not Redis).
  public var time: WallTime
  public var globalVersion: Int64
  public var accountVersion: Int64
  /// True where this answer was recorded earlier and is given again.
  public var replayed: Bool
  /// The items that were asked for, then the derived ones.
  public var items: [ItemState]
  /// When the reservation expires; nil: nothing is held.
  public var expires: WallTime?
  /// Of a settle or a refund, one per item, derived ones last.
  public var settlements: [Settlement]
  /// Which grants covered what, in the order in which they were burnt.
  public var burns: [Burn]
  /// The features that rates charged for the items, which follow these in `items`.
  public var derived: [Name]

  public var isAllowed: Bool { reason.isAllowed }

  public init(
    reason: Reason, source: Source, binding: Name? = nil, bindingItem: Int? = nil,
    retryAfter: Int64? = nil, time: WallTime, globalVersion: Int64 = 0, accountVersion: Int64 = 0,
    replayed: Bool = false, items: [ItemState] = [], expires: WallTime? = nil,
    settlements: [Settlement] = [], burns: [Burn] = [], derived: [Name] = []
  ) {
    self.reason = reason
    self.source = source
    self.binding = binding
    self.bindingItem = bindingItem
    self.retryAfter = retryAfter
    self.time = time
    self.globalVersion = globalVersion
    self.accountVersion = accountVersion
    self.replayed = replayed
    self.items = items
    self.expires = expires
    self.settlements = settlements
    self.burns = burns
    self.derived = derived
  }
}
