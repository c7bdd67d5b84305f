// All leases of a sidecar, shared by all its loops: stripes, each under a lock of its own. A bucket
// belongs to one stripe, so whatever is about one account happens under one lock, and so does an
// exchange. Nothing waits for anything while a lock is held but for memory.

package import TollgateCore

// Safe: each stripe is only touched with its lock held; the pointers are set once by `init` and
// freed by `deinit`, when nobody has the table any more.
@safe package final class LeaseTable: @unchecked Sendable {
  package let region: LeaseRegion
  package let buckets: Int
  /// Apart from what they guard: a lock is read by whoever waits for it.
  private let locks: UnsafeMutablePointer<StripeLock>
  private let stripes: UnsafeMutablePointer<UnsafeMutablePointer<LeaseStripe>>
  /// Of each stripe's ring: the same as long as the table is there, so read without the lock.
  private let reaches: UnsafeMutablePointer<LeaseRing.Reach>
  /// Of all stripes' rings, side by side.
  private let indexes: ZeroedPages
  private let count: Int
  /// Stripes are a power of two.
  private let mask: Int

  /// - Parameters:
  ///   - region: outlives the table. What is in it is taken up.
  ///   - begun: by this machine's clock (wall ms), until `begin`: ids minted until then are refused
  ///     where the region is new, as an earlier incarnation may have let them through.
  package init(
    _ configuration: LeaseConfiguration, region: LeaseRegion, buckets: Int, begun: Int64
  ) {
    self.region = region
    self.buckets = buckets
    count = region.geometry.stripes
    mask = count - 1
    let indexBytes = LeaseRing.indexBytes(slots: region.geometry.slots)
    indexes = ZeroedPages(bytes: count * indexBytes)
    unsafe locks = .allocate(capacity: count)
    unsafe stripes = .allocate(capacity: count)
    unsafe reaches = .allocate(capacity: count)
    for index in 0..<count {
      unsafe (locks + index).initialize(to: StripeLock())
      let stripe = UnsafeMutablePointer<LeaseStripe>.allocate(capacity: 1)
      unsafe stripe.initialize(
        to: LeaseStripe(
          configuration, region: region.stripe(index), number: index, stripes: count,
          buckets: buckets, lessee: region.lessee, begun: begun,
          index: indexes.base + index * indexBytes))
      unsafe stripes[index] = stripe
      unsafe (reaches + index).initialize(to: stripe.pointee.ring.reach)
    }
  }

  deinit {
    for index in 0..<count {
      unsafe stripes[index].deinitialize(count: 1)
      unsafe stripes[index].deallocate()
      unsafe (locks + index).deinitialize(count: 1)
    }
    unsafe reaches.deallocate()
    unsafe stripes.deallocate()
    unsafe locks.deallocate()
  }

  @inline(__always)
  private func with<T>(_ bucket: Int, _ body: (inout LeaseStripe) -> T) -> T {
    let index = bucket & mask
    unsafe locks[index].lock()
    defer { unsafe locks[index].unlock() }
    return unsafe body(&stripes[index].pointee)
  }

  private func withAll(_ body: (inout LeaseStripe) -> Void) {
    for index in 0..<count { with(index, body) }
  }

  /// Redis said what time it is: from the first time on leases may answer. Ids from before a new
  /// region are refused by that time.
  ///
  /// - Parameters:
  ///   - start: when this process began (wall ms).
  ///   - now: the present time.
  package func begin(at start: Int64, now: Int64) {
    withAll { $0.ring.begin(at: start, now: now) }
  }

  /// Whether an id was minted when somebody may have let it through whom nobody remembers.
  package func isOfUnknownPast(bucket: Int, _ id: OperationID) -> Bool {
    with(bucket) { $0.ring.isOfUnknownPast(Int64(id.high >> 16)) }
  }

  // MARK: - The hot path

  /// An operation of this id will be spent in a moment. Costs next to nothing, and spares most of
  /// the one access to memory that no cache has.
  @inline(__always)
  package func expect(bucket: Int, _ id: OperationID) {
    unsafe reaches[bucket & mask].prefetch(id.high, id.low)
  }

  /// Decides from memory, and writes the answer to `out`. Any thread.
  package func spend(
    _ request: borrowing LeaseRequest, into out: UnsafeMutableRawBufferPointer
  ) -> LeaseOutcome {
    let index = request.bucket & mask
    unsafe locks[index].lock()
    let outcome = unsafe stripes[index].pointee.spend(request, into: out)
    unsafe locks[index].unlock()
    return outcome
  }

  /// Whether `spend` would answer, for all that can be told without counting: so that a frame of
  /// several is not begun that cannot be ended. Any thread.
  /// - Parameter others: units that are spent before it and may be of the same.
  package func wouldAnswer(
    _ request: borrowing LeaseRequest, space: Int, after others: Int64 = 0
  ) -> Bool {
    let index = request.bucket & mask
    unsafe locks[index].lock()
    let would = unsafe stripes[index].pointee.wouldAnswer(request, space: space, after: others)
    unsafe locks[index].unlock()
    return would
  }

  /// Takes an operation back. The request's kind is not looked at.
  package func cancel(_ request: borrowing LeaseRequest) -> LeaseCancel {
    let index = request.bucket & mask
    unsafe locks[index].lock()
    let outcome = unsafe stripes[index].pointee.cancel(request)
    unsafe locks[index].unlock()
    return outcome
  }

  /// What became of an operation here; nothing changes, but that an unknown one is marked: it goes
  /// to Redis, and so does whatever comes under its id.
  package func known(_ request: borrowing LeaseRequest) -> LeaseKnown {
    let index = request.bucket & mask
    unsafe locks[index].lock()
    let known = unsafe stripes[index].pointee.known(request)
    unsafe locks[index].unlock()
    return known
  }

  /// An operation of a leasable shape without an entry goes to Redis: before it is sent.
  /// False: it was let through or marked here before; spend again for the answer.
  package func mark(bucket: Int, id: OperationID) -> Bool {
    with(bucket) { stripe in
      guard stripe.ring.find(id.high, id.low) == 0 else { return false }
      stripe.mark(id.high, id.low)
      return true
    }
  }

  // MARK: - Entries

  package func register(_ registration: LeaseRegistration) -> LeaseRegistered {
    with(registration.bucket) { $0.register(registration) }
  }

  /// False: its key is not known, or no longer as it is now; register it first.
  package func noteDenial(bucket: Int, _ note: LeaseDenialNote) -> Bool {
    with(bucket) { $0.noteDenial(note) }
  }

  // MARK: - Exchanges

  /// What is due of this bucket, to be sent at once: `now` becomes the time it was sent. `id` is
  /// new. Call until nil, every few milliseconds.
  /// `isSpare`: whether there is capacity for more than what has to go. `settle`: when usage has to
  /// go, in nanoseconds, where the configured time is too short for all that is hot.
  package func collect(
    bucket: Int, now: MonotonicTime, id: @autoclosure () -> OperationID, isSpare: Bool = true,
    settle: Int64 = 0
  ) -> LeaseExchange? {
    with(bucket) {
      $0.collect(bucket: bucket, now: now.nanoseconds, id: id, isSpare: isSpare, settle: settle)
    }
  }

  /// Accounts of the bucket with usage that is in no batch.
  package func waiting(bucket: Int) -> Int {
    with(bucket) { Int($0.lines[$0.line(of: bucket)].waiting) }
  }

  package func replied(
    _ token: LeaseExchange.Token, _ replies: [LeaseReply], now: MonotonicTime
  ) {
    with(token.bucket) { $0.replied(token.number, replies, now: now.nanoseconds) }
  }

  /// Sent, and the outcome is not known: `collect` gives it again, under the same id.
  package func lost(_ token: LeaseExchange.Token) {
    with(token.bucket) { $0.lost(token.number) }
  }

  /// Not sent, or refused as a whole before anything was done (fenced, not seeded).
  package func notSent(_ token: LeaseExchange.Token) {
    with(token.bucket) { $0.notSent(token.number) }
  }

  /// Whether it may have been done, now or by an earlier send: nobody here can tell.
  package func isInDoubt(_ token: LeaseExchange.Token) -> Bool {
    with(token.bucket) { $0.exchanges[token.number]?.mayBeDone ?? false }
  }

  /// Refused for the age of its id. `wasDone`: whether an earlier send of it was, as the ledger
  /// knows; nil where nobody does. True: it is over here, and what an earlier send may have done is
  /// the caller's to bring to the ledger; false: none was done, and it goes out under a new id.
  @discardableResult
  package func tooOld(
    _ token: LeaseExchange.Token, wasDone: Bool?, now: MonotonicTime
  ) -> Bool {
    with(token.bucket) { $0.tooOld(token.number, wasDone: wasDone, now: now.nanoseconds) }
  }

  /// Whether an exchange that stays open leaves too little room for the operations of others.
  package func standsInTheWay(_ token: LeaseExchange.Token) -> Bool {
    with(token.bucket) { $0.standsInTheWay(token.number) }
  }

  /// It cannot be sent, ever: what it settles is counted as unresolved.
  package func abandon(_ token: LeaseExchange.Token, now: MonotonicTime) {
    with(token.bucket) { $0.abandon(token.number, now: now.nanoseconds) }
  }

  // MARK: - News

  /// Something that the account had used was taken back; denials from before say nothing any more.
  package func corrected(bucket: Int, account: [UInt8], now: MonotonicTime) {
    with(bucket) { $0.corrected(account, now: now.nanoseconds) }
  }

  package func configChanged(bucket: Int, account: [UInt8], now: MonotonicTime) {
    with(bucket) { $0.configChanged(account, now: now.nanoseconds) }
  }

  package func configChanged(now: MonotonicTime) {
    withAll { $0.configChanged(now: now.nanoseconds) }
  }

  /// A STALE reply named these; the account's next exchange does.
  package func versions(
    bucket: Int, account: [UInt8], globalVersion: Int64, accountVersion: Int64
  ) {
    with(bucket) {
      $0.versions(account, globalVersion: globalVersion, accountVersion: accountVersion)
    }
  }

  package func recall(bucket: Int, account: [UInt8], now: MonotonicTime) {
    with(bucket) { $0.recall(account, now: now.nanoseconds) }
  }

  package func epochChanged(bucket: Int) {
    with(bucket) { $0.epochChanged(bucket: bucket) }
  }

  /// The subscription stands, and misses nothing, since then.
  package func subscribed(since: MonotonicTime) {
    withAll { $0.unbrokenSince = since.nanoseconds }
  }

  package func unsubscribed() {
    withAll { $0.unbrokenSince = .max }
  }

  /// A word of the subscription came.
  package func heard(at now: MonotonicTime) {
    withAll {
      $0.freshUntil = max($0.freshUntil, now.nanoseconds + $0.configuration.freshNanoseconds)
    }
  }

  /// Nothing is spent any more, and all that is held is given back.
  package func close(now: MonotonicTime) {
    withAll { stripe in
      stripe.isClosing = true
      stripe.configChanged(now: now.nanoseconds)
      for account in stripe.accounts.indices
      where stripe.accounts[account].has(LeaseAccount.isLive) {
        stripe.outdate(account)
      }
    }
  }

  /// Nothing is held, and nothing is to be settled.
  package var isReturned: Bool {
    (0..<count).allSatisfy { index in
      with(index) { stripe in
        stripe.unsettledOperations == 0 && stripe.exchanges.isEmpty
          && stripe.portions.indices.allSatisfy {
            !stripe.portions[$0].has(LeasePortion.isLive) || stripe.portions[$0].left <= 0
          }
      }
    }
  }

  /// Nobody uses it any more. Where nothing is left the region says so: whoever finds it need not
  /// be of this deployment, and may make another of it.
  package func end() {
    let sums = gauges
    guard isReturned, sums.unsettledUnits == 0, sums.creditUnits == 0, sums.unresolvedUnits == 0,
      sums.recovering == 0, region.predecessors.isEmpty
    else { return }
    region.ended()
  }

  // MARK: - Sums

  package enum Load: Sendable, Hashable, Comparable {
    /// Nothing is leased, and nothing is to be settled.
    case none
    /// Shapes are known, and nothing is held for them, asked for or taken back.
    case idle
    /// There are shapes that may be spent of.
    case registered
    case unsettled
  }

  /// How much there is to do.
  package var load: Load {
    var load = Load.none
    for index in 0..<count {
      load = max(
        load,
        with(index) { stripe in
          if stripe.unsettledOperations > 0 || !stripe.exchanges.isEmpty || stripe.ghosts > 0 {
            return .unsettled
          }
          let isAsking = stripe.lines.indices.contains {
            stripe.lines[$0].first != 0 || stripe.lines[$0].urgentFirst != 0
          }
          if stripe.inWheel > 0 || isAsking { return .registered }
          return stripe.entries.used > 0 || stripe.portions.used > 0 ? .idle : .none
        })
    }
    return load
  }

  package var gauges: LeaseGauges {
    var sum = LeaseGauges()
    for index in 0..<count { sum += with(index) { $0.gauges } }
    return sum
  }

  /// What the sidecar may at any instant have let through and not settled in Redis: each stripe
  /// leaves to Redis what would bring it above its share.
  package var unsettledMax: (units: Int64, operations: Int64) {
    with(0) { stripe in
      (
        stripe.unsettledUnitsMax * Int64(count),
        min(stripe.unsettledOperationsMax, Int64(stripe.ring.slots - stripe.ring.slots / 8))
          * Int64(count)
      )
    }
  }

  /// Earlier incarnations that have nothing left to settle: Redis may be told that they are over,
  /// and then `region.closed`. To be asked now and then while `region.predecessors` names any.
  package var finishedPredecessors: [UInt64] {
    let predecessors = region.predecessors
    guard !predecessors.isEmpty else { return [] }
    var open: Set<UInt64> = []
    for index in 0..<count {
      with(index) { stripe in
        guard stripe.ghosts > 0 else { return }
        for account in stripe.accounts.indices
        where stripe.accounts[account].has(LeaseAccount.isLive)
          && stripe.accounts[account].has(LeaseAccount.isGhost)
        {
          open.insert(stripe.accounts[account].lessee)
        }
      }
    }
    return predecessors.filter { !open.contains($0) }
  }
}
