// The ids of which a caller was told "outcome unknown". Asked again, such an operation is not a new
// one: until a sidecar has answered for its id, an earlier attempt may have been applied, whatever
// happens to this one. So it never ends as `notSent` or `rejected`, which would invite another id,
// and a denial by policy is taken back like that of any other operation in doubt.
//
// Bounded: beyond the capacity the oldest id is forgotten. What an earlier process was told is not
// known here. With an id goes the one sidecar that knows of it, where that is so (+Homes).

internal import DequeModule
internal import TollgateCore

struct DoubtfulIDs {
  let capacity: Int
  private var ids: [OperationID: Home?] = [:]
  /// Oldest first. May name ids that are settled.
  private var order: Deque<OperationID> = []

  init(capacity: Int) { self.capacity = max(1, capacity) }

  var count: Int { ids.count }

  func contains(_ id: OperationID) -> Bool { ids[id] != nil }

  /// nil: anybody may be asked, or it is not in doubt.
  func home(of id: OperationID) -> Home? { ids[id] ?? nil }

  mutating func insert(_ id: OperationID, home: Home? = nil) {
    guard ids[id] == nil else { return }
    ids[id] = .some(home)
    order.append(id)
    while ids.count > capacity, let oldest = order.popFirst() { ids[oldest] = nil }
    if order.count > 2 * ids.count + 64 { order = Deque(order.filter(contains)) }
  }

  mutating func remove(_ id: OperationID) { ids.removeValue(forKey: id) }
}
