// A count that many threads of a test share.

import Synchronization

final class Atomic64: Sendable {
  private let raw = Atomic<Int64>(0)

  var value: Int64 { raw.load(ordering: .sequentiallyConsistent) }
  var bits: UInt64 { UInt64(bitPattern: add(1)) }

  @discardableResult
  func add(_ amount: Int64) -> Int64 {
    raw.add(amount, ordering: .sequentiallyConsistent).newValue
  }
}
