// The very EVALSHA a sidecar would send for an operation, for driving a bare Redis by the same
// hand: same script, same keys, same arguments, on state that a sidecar prepared. Encoded by the
// sidecar's own call; the generator patches subject and operation id.

internal import NIOCore
package import TollgateCore
internal import TollgateRedis
internal import TollgateWire

package struct DecideCommands: DecideSource {
  package let bucketOfSubject: [UInt16]
  private let names: SubjectNames
  private let items: [Item]
  private let keySpace: KeySpace
  private let global: GlobalConfig
  private let account: AccountConfig
  private let fences: [Fence]
  private let limits: StoreLimits

  /// Reads the deployment, its configuration and every bucket's fence, and loads the script.
  package init(
    _ redis: RedisReader, deployment: Name, names: SubjectNames, items: [Item]
  ) throws {
    self.names = names
    self.items = items
    // No shipper trims and no sweeper forgets here, so no ceiling may be reached.
    var limits = StoreLimits()
    limits.moneyRecordBytesMax = 1 << 40
    limits.volumeRecordBytesMax = 1 << 40
    limits.outboxEntriesMax = 100_000_000
    self.limits = limits
    let record = "tollgate:{\(deployment.text)}:deployment"
    guard let count = try redis.command(["HGET", record, "buckets"]).text.flatMap({ Int($0) }),
      count >= 1, count <= Deployment.bucketsMax
    else { throw BenchError("Redis has no deployment \(deployment)") }
    let keySpace = KeySpace(deployment: deployment, map: BucketMap(buckets: count))
    self.keySpace = keySpace
    bucketOfSubject = try (0..<names.count).map {
      UInt16(keySpace.bucket(of: try names.subject($0)))
    }
    guard let text = try redis.command(["HGET", keySpace.global, "cfg"]).text else {
      throw BenchError("Redis has no catalog")
    }
    global = try GlobalConfig(document: Document(json: text))
    let header = try redis.command([
      "HGET", keySpace.subject(keySpace.bucket(of: names.subject(0)), names.subject(0).account),
      "cfg",
    ])
    account =
      try header.text.flatMap { $0.isEmpty ? nil : $0 }
      .map { try AccountConfig(document: Document(json: $0)) } ?? AccountConfig()
    fences = try (0..<count).map { bucket in
      guard case .list(let meta) = try redis.command(["HMGET", keySpace.meta(bucket), "f", "seq"]),
        meta.count == 2, let fence = meta[0].text
      else { throw BenchError("bucket \(bucket) is not open") }
      let state = FenceState(text: fence, sequence: nil)
      guard let epoch = state.epoch, let run = state.runID, let replication = state.replicationID
      else { throw BenchError("bucket \(bucket) is not open") }
      return Fence(
        deployment: deployment, epoch: epoch, runID: run, replicationID: replication,
        seenSequence: meta[1].text.flatMap { Int64($0) } ?? 0)
    }
    try redis.require(
      redis.command([
        Array("SCRIPT".utf8), Array("LOAD".utf8), ScriptLibrary.shared.source(.decide),
      ]))
  }

  package func templates(wallMilliseconds: Int64) throws -> [Template] {
    let now = WallTime(milliseconds: wallMilliseconds)
    let subject = try names.subject(names.sentinel)
    let identifier = OperationID(
      high: UInt64(wallMilliseconds) << 16 | 0xD00D, low: Template.identifierLow)
    let resolution = Resolution.resolve(
      subject: subject, items: items, global: global, account: account, now: now,
      zones: .utcOnly)
    let plan = DecidePlan(items: items, resolution: resolution)
    let bodies = plan.meteredItems.map { item in
      UsageBody(
        subject: subject, feature: items[item].feature,
        period: Window.month.period(containing: now),
        cells: resolution.cells.filter { $0.item == item }
          .map { CellReference(level: $0.level, window: $0.window, period: $0.period) },
        catalogVersion: global.catalogVersion, source: .redis
      ).encode()
    }
    return try fences.indices.map { bucket in
      let call = DecideCall(
        keySpace: keySpace, bucket: bucket, fence: fences[bucket], operation: identifier,
        fingerprint: OperationFingerprint(subject: subject, items: items), mode: .consume,
        subject: subject, plan: plan, bodies: bodies, globalVersion: global.version,
        accountVersion: account.version, limits: limits, notAfter: now + 10_000)
      var buffer = ByteBuffer()
      call.write(into: &buffer)
      return try Template(
        Array(buffer.readableBytesView), names: names, identifier: identifier, amounts: 0)
    }
  }
}
