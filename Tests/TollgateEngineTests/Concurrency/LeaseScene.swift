// One sidecar's lease table with a clock of the test's own, and words to write transcripts with.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateEngine

/// Memory that outlives a table, as a mapped file outlives a process.
// Safe: the pointer is set once and freed with the owner; who writes it holds a stripe's lock.
@safe final class LeaseMemory: @unchecked Sendable {
  let geometry: LeaseGeometry
  private let base: UnsafeMutableRawPointer

  init(_ geometry: LeaseGeometry) {
    self.geometry = geometry
    unsafe base = .allocate(byteCount: geometry.bytes, alignment: 4096)
    unsafe base.initializeMemory(as: UInt8.self, repeating: 0, count: geometry.bytes)
  }

  deinit { unsafe base.deallocate() }

  /// Whose it is where nothing else is said.
  static let deployment: Deployment = {
    guard let id = try? Name("here") else { preconditionFailure("it is a name") }
    return Deployment(id: id, buckets: 1, mode: .dev)
  }()

  func region(lessee: UInt64, host: UInt64 = 1) -> LeaseRegion {
    do throws(LeaseRegion.Refusal) {
      return try region(lessee: lessee, host: host, deployment: Self.deployment)
    } catch {
      preconditionFailure("\(error)")
    }
  }

  /// - Parameter wanted: where it is begun anew; nil: as long as the memory.
  func region(
    lessee: UInt64, host: UInt64 = 1, geometry wanted: LeaseGeometry? = nil,
    deployment: Deployment
  ) throws(LeaseRegion.Refusal) -> LeaseRegion {
    try unsafe LeaseRegion(
      UnsafeMutableRawBufferPointer(start: base, count: geometry.bytes),
      geometry: wanted ?? geometry, deployment: deployment, lessee: lessee, host: host)
  }

  /// As if another process had died in the middle of writing here.
  func tear(at offset: Int, _ byte: UInt8) {
    unsafe base.storeBytes(of: byte, toByteOffset: offset, as: UInt8.self)
  }

  func byte(at offset: Int) -> UInt8 { unsafe base.load(fromByteOffset: offset, as: UInt8.self) }
}

/// A shape: an account, and cells with one amount each.
struct Shape {
  var account: String
  var key: String
  /// Judged cells; the first is the one shown.
  var cells: [String]
  var counted: [String] = []
  var kind = LeasePortionKey.Kind.cell
  var items = 1

  static func simple(_ account: String = "acme", member: String? = nil) -> Shape {
    Shape(
      account: account, key: account + (member.map { "/" + $0 } ?? ""),
      cells: [account] + (member.map { [account + "/" + $0] } ?? []),
      counted: [account + ".bill"])
  }

  var allCells: [String] { cells + counted }
}

@safe final class LeaseScene {
  static let wallStart: Int64 = 1_700_000_000_000

  let table: LeaseTable
  /// The table does not keep it.
  private let memory: LeaseMemory
  /// Of what is asked from now on.
  var bucket: Int
  /// Nanoseconds since the boot; wall time runs along.
  var now: Int64
  var version: Int64 = 1
  private let isAlone: Bool
  private var minted: UInt64
  let out = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 8)

  static func geometry(stripes: Int = 1, slots: Int = 256, log: Int = 1 << 18) -> LeaseGeometry {
    LeaseGeometry(stripes: stripes, slots: slots, logBytes: log)
  }

  init(
    _ memory: LeaseMemory = LeaseMemory(LeaseScene.geometry()), lessee: UInt64 = 1,
    configuration: LeaseConfiguration = LeaseConfiguration(), now: Int64 = 10_000_000_000,
    horizon: Int64 = 0, isBegun: Bool = true, buckets: Int = 1, bucket: Int = 0,
    minted: UInt64 = 0
  ) {
    let region = memory.region(lessee: lessee)
    region.opened()
    table = LeaseTable(configuration, region: region, buckets: buckets, begun: horizon)
    // Redis said so at once.
    if isBegun { table.begin(at: horizon, now: horizon) }
    self.memory = memory
    self.now = now
    self.bucket = bucket
    self.minted = minted
    isAlone = true
  }

  /// One thread's way to a table that others have, too: what it foresees they may change.
  init(on table: LeaseTable, _ memory: LeaseMemory, bucket: Int, minted: UInt64, now: Int64) {
    self.table = table
    self.memory = memory
    self.now = now
    self.bucket = bucket
    self.minted = minted
    isAlone = false
  }

  deinit { unsafe out.deallocate() }

  var wall: Int64 { Self.wallStart + now / 1_000_000 }

  func pass(_ milliseconds: Int64) { now += milliseconds * 1_000_000 }

  func mint() -> OperationID {
    minted += 1
    return OperationID(high: UInt64(wall) << 16 | minted & 0xFFFF, low: minted &* 0x9E37_79B9)
  }

  @discardableResult
  func spend(
    _ shape: Shape = .simple(), _ amounts: Int64..., id: OperationID? = nil,
    kind: LeaseKind = .consume
  ) -> LeaseOutcome {
    spend(shape, amounts, id: id, kind: kind)
  }

  func spend(
    _ shape: Shape, _ amounts: [Int64], id: OperationID? = nil, kind: LeaseKind = .consume
  ) -> LeaseOutcome {
    let id = id ?? mint()
    let would = request(shape, amounts, id, kind) {
      unsafe table.wouldAnswer($0, space: out.count)
    }
    let outcome = request(shape, amounts, id, kind) { unsafe table.spend($0, into: out) }
    if isAlone, kind == .consume { #expect(would == isAnswer(outcome) ?? would, "\(outcome)") }
    return outcome
  }

  /// Whether it is what `wouldAnswer` foresees; nil: it need not foresee that.
  private func isAnswer(_ outcome: LeaseOutcome) -> Bool? {
    switch outcome {
    case .allowed: true
    // Of an id that is known, or of none.
    case .denied, .replayed, .known, .knownDenied, .mismatch, .cancelled, .tooOld: nil
    case .miss(.exposed), .miss(.ringFull), .miss(.logFull), .miss(.marked): nil
    case .miss: false
    }
  }

  func cancel(_ shape: Shape, _ amount: Int64, id: OperationID) -> LeaseCancel {
    request(shape, [amount], id, .consume) { table.cancel($0) }
  }

  private func request<T>(
    _ shape: Shape, _ amounts: [Int64], _ id: OperationID, _ kind: LeaseKind,
    _ body: (borrowing LeaseRequest) -> T
  ) -> T {
    let key = Array(shape.key.utf8)
    return unsafe key.withUnsafeBytes { key in
      unsafe amounts.withUnsafeBufferPointer { amounts in
        body(
          unsafe LeaseRequest(
            bucket: bucket, kind: kind, id: id, key: key, hash: LeaseHash.of(key),
            amounts: amounts, now: now, wall: wall))
      }
    }
  }

  /// The answer's numbers: remaining, settled, held, time, flags.
  func number(_ place: Int) -> Int64 {
    unsafe out.loadUnaligned(fromByteOffset: place * 8, as: Int64.self)
  }

  static let template = LeaseTemplate(
    bytes: Array(repeating: 0, count: 48),
    patches: [
      LeasePatch(.remaining, at: 0), LeasePatch(.settled, at: 8), LeasePatch(.held, at: 16),
      LeasePatch(.time, at: 24), LeasePatch(.replayed, at: 32),
    ])

  func registration(
    _ shape: Shape, amount: Int64 = 1_000, demand: Int64 = 1, end: Int64 = .max,
    isStaleAllowed: Bool = false
  ) -> LeaseRegistration {
    let portions =
      shape.cells.map {
        LeasePortionKey(shape.kind, name: Array($0.utf8), limits: [1, 2, 3], end: end)
      } + shape.counted.map { LeasePortionKey(.count, name: Array($0.utf8), limits: []) }
    var template = Self.template
    for index in 0..<8 { template.bytes[40 + index] = UInt8(version >> Int64(8 * index) & 0xFF) }
    return LeaseRegistration(
      bucket: bucket, account: Array(shape.account.utf8), key: Array(shape.key.utf8),
      globalVersion: version, accountVersion: 1, confirmedAt: now, now: now, validUntil: end,
      isStaleAllowed: isStaleAllowed,
      items: (0..<shape.items).map { item in
        .init(
          portions: item == 0 ? Array(portions.indices) : [],
          shown: item == 0 && !shape.cells.isEmpty ? 0 : nil, amount: amount)
      },
      portions: portions, demand: demand, template: template,
      definition: Array(shape.allCells.joined(separator: ",").utf8))
  }

  @discardableResult
  func register(
    _ shape: Shape = .simple(), amount: Int64 = 1_000, demand: Int64 = 1, end: Int64 = .max,
    isStaleAllowed: Bool = false
  ) -> LeaseRegistered {
    table.register(
      registration(
        shape, amount: amount, demand: demand, end: end, isStaleAllowed: isStaleAllowed))
  }

  var monotonic: MonotonicTime { MonotonicTime(nanoseconds: now) }

  /// - Parameter settle: milliseconds.
  func collect(isSpare: Bool = true, settle: Int64 = 0) -> LeaseExchange? {
    table.collect(
      bucket: bucket, now: monotonic, id: mint(), isSpare: isSpare, settle: settle * 1_000_000)
  }

  /// Everything that is due goes to Redis and is answered at once.
  @discardableResult
  func exchange(with redis: ModelRedis, settle: Int64 = 0) -> Int {
    var count = 0
    while let exchange = collect(settle: settle) {
      redis.now = wall
      table.replied(exchange.token, redis.exchange(exchange), now: monotonic)
      count += 1
      if count > 1_000 { preconditionFailure("exchanges without an end") }
    }
    return count
  }

  /// Registers and acquires.
  @discardableResult
  func begin(_ redis: ModelRedis, _ shape: Shape = .simple(), demand: Int64 = 10) -> LeaseScene {
    register(shape, amount: redis.amounts[shape.cells.first ?? ""] ?? 0, demand: demand)
    exchange(with: redis)
    return self
  }

  var isUnsettled: Bool { table.gauges.unsettledUnits != 0 }

  /// Time passes in small steps, and exchanges with it.
  func run(_ milliseconds: Int64, _ redis: ModelRedis, step: Int64 = 10, settle: Int64 = 0) {
    var left = milliseconds
    while left > 0 {
      pass(step)
      left -= step
      exchange(with: redis, settle: settle)
    }
  }
}

extension LeaseOutcome {
  var isAllowed: Bool {
    if case .allowed = self { true } else { false }
  }

  var isReplayed: Bool {
    if case .replayed = self { true } else { false }
  }
}
