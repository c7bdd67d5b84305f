// What all threads of a sidecar share of its leases: the table, the memory that its operations are
// remembered in, and what time it is in Redis. Made before the loops, gone after them.

import NIOConcurrencyHelpers
import Synchronization
import TollgateCore
import TollgateEngine
import TollgateRedis

final class LeaseHub: Sendable {
  let table: LeaseTable
  let buckets: BucketMap
  /// Held for as long as the table is: its region lies in it.
  private let memory: LeaseMemory
  /// Redis time less boot time, milliseconds; this machine's until Redis said what time it is.
  private let offset: Synchronization.Atomic<Int64>
  /// Boot time.
  private let startedAt = LeaseHub.bootNanoseconds()
  private let isBegun = Atomic<Bool>(false)
  /// Event loops that somebody watches (`tollgate tail`): nothing is answered out of his sight.
  let isWatched = Atomic<Int>(0)

  /// Keepers sleep for long: whoever makes work for them rouses them.
  private let areResting = Atomic<Bool>(false)
  private let keepers = NIOLockedValueBox<[@Sendable () -> Void]>([])

  /// Of each operation slot's share of the log, and of the stripes.
  static let stripes = 16
  static let logBytesPerStripe = 1 << 20
  /// Of the bounds on what is unsettled: something for each stripe.
  static let unsettledLeast: Int64 = 1_024

  /// - Parameter journal: of the sidecar; nil: what is let through is not remembered over an end.
  init(
    _ configuration: ServerConfiguration, buckets: BucketMap, startedAt: WallTime
  ) throws(LeaseMemory.Failure) {
    let geometry = Self.geometry(configuration)
    let path = configuration.journal.map { $0 + ServerConfiguration.Leases.fileSuffix }
    let memory =
      if let path {
        try LeaseMemory(path: path, bytes: geometry.bytes)
      } else {
        try LeaseMemory(bytes: geometry.bytes)
      }
    let region: LeaseRegion
    do throws(LeaseRegion.Refusal) {
      region = try unsafe LeaseRegion(
        memory.region, geometry: geometry, deployment: configuration.deployment,
        lessee: UInt64.random(in: 1 ... .max), host: LeaseMemory.host)
    } catch {
      throw Self.failure(error, path ?? "the leases' memory")
    }
    self.memory = memory
    self.buckets = buckets
    offset = Atomic(startedAt.milliseconds - Self.bootNanoseconds() / 1_000_000)
    table = LeaseTable(
      Self.limits(configuration), region: region, buckets: buckets.buckets,
      begun: startedAt.milliseconds)
  }

  static func geometry(_ configuration: ServerConfiguration) -> LeaseGeometry {
    LeaseGeometry(
      stripes: stripes, slots: configuration.leases.operations / stripes,
      logBytes: logBytesPerStripe)
  }

  private static func failure(
    _ refusal: LeaseRegion.Refusal, _ path: String
  ) -> LeaseMemory.Failure {
    switch refusal {
    case .unusable:
      LeaseMemory.Failure(description: "\(path): cannot be used")
    case .anotherDeployment(let differences):
      LeaseMemory.Failure(description: JournalOwner.refusal(of: path, differences))
    }
  }

  /// What the table may make of one exchange fits one call.
  static func limits(_ configuration: ServerConfiguration) -> LeaseConfiguration {
    var limits = LeaseConfiguration()
    limits.leaseMilliseconds = configuration.leases.ttlMilliseconds
    limits.accountsPerExchangeMax = LeaseCall.accountsMax
    limits.deltasMax = LeaseCall.deltasMax
    limits.portionsPerExchangeMax = LeaseCall.portionsMax
    limits.tickNanoseconds = configuration.leases.tickMilliseconds * 1_000_000
    limits.unsettledUnitsMax = configuration.leases.unsettledUnits
    limits.unsettledOperationsMax =
      configuration.leases.unsettledOperations ?? Int64(configuration.leases.operations / 2)
    return limits
  }

  /// Whose leases are taken from now on.
  var lessee: UInt64 { table.region.lessee }

  // MARK: - Rest

  /// `rouse` wakes one keeper, from any thread.
  func keep(_ rouse: @escaping @Sendable () -> Void) {
    keepers.withLockedValue { $0.append(rouse) }
  }

  /// The loops end: nobody is roused any more.
  func endKeeping() { keepers.withLockedValue { $0 = [] } }

  /// A keeper finds nothing to do. It looks once more afterwards: what was spent before this is
  /// found then, and whoever spends after it sees that keepers rest, as both go through the locks
  /// of the table in between.
  func rests() { areResting.store(true, ordering: .releasing) }

  /// There is something to be settled.
  @inline(__always)
  func spent() {
    if areResting.load(ordering: .relaxed) { rouse() }
  }

  @inline(never)
  private func rouse() {
    guard areResting.exchange(false, ordering: .acquiringAndReleasing) else { return }
    for keeper in keepers.withLockedValue({ $0 }) { keeper() }
  }

  static func bootNanoseconds() -> Int64 { LocalSystem.bootNanoseconds() }

  static var now: MonotonicTime { MonotonicTime(nanoseconds: bootNanoseconds()) }

  /// Of one event loop: whether somebody watches it.
  func watched(_ on: Bool) { isWatched.wrappingAdd(on ? 1 : -1, ordering: .relaxed) }

  /// A loop heard from Redis what time it is.
  func heard(_ wall: WallTime, at boot: Int64) {
    offset.store(wall.milliseconds - boot / 1_000_000, ordering: .relaxed)
    guard !isBegun.load(ordering: .acquiring) else { return }
    table.begin(
      at: wall.milliseconds - (boot - startedAt) / 1_000_000, now: wall.milliseconds)
    isBegun.store(true, ordering: .releasing)
  }

  /// More than that nobody needs to know of (ms).
  static let reachMax: Int64 = 86_400_000

  /// How far back the table remembers every id (ms), where it may have forgotten those minted until
  /// `horizon`.
  func reach(since horizon: Int64) -> Int64 {
    min(Self.reachMax, max(0, wall(at: Self.bootNanoseconds()) - horizon))
  }

  /// Redis time, as far as it can be told here.
  func wall(at boot: Int64) -> Int64 {
    boot / 1_000_000 + offset.load(ordering: .relaxed)
  }
}
