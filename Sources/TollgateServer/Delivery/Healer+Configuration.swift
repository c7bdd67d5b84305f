// The global configuration: read each beat, put back after a loss from the ledger, or from the
// newest that this sidecar knows.

import Logging
import NIOCore
import TollgateCore
import TollgateEngine
import TollgateRedis
import TollgateWire

extension Healer {
  // MARK: - Global configuration

  /// Reads the global configuration and tells every loop. Answers its version; nil where Redis
  /// does not answer or holds none.
  @discardableResult
  func refresh() async -> Int64? {
    do {
      guard let config = try await store.global() else { return nil }
      metrics.configRefreshes.add()
      lastHeartbeat = .now()
      if config.version > (global?.version ?? 0) { global = config }
      if let global {
        for loop in loops { loop.onLoop { $0.globalChanged(global) } }
      }
      return global?.version
    } catch {
      return nil
    }
  }

  /// One beat: compares versions, refreshes where Redis has a newer one, puts the global
  /// configuration back where Redis has lost it.
  func beat() async {
    guard let version = try? await store.globalVersion() else { return }
    lastHeartbeat = .now()
    if version > (global?.version ?? 0) {
      await refresh()
    } else if version == 0, open[buckets.control] == nil {
      await recover(bucket: buckets.control, knownEpoch: 0)
    } else if version == 0 || version < global?.version ?? 0 {
      await restoreGlobal(standing: version)
    }
  }

  /// The ledger's, or what is in force here where that is newer: an edit that was answered and then
  /// lost by Redis before the ledger had it is still what all that heard of it decide by.
  func restoreGlobal(standing: Int64) async {
    var standing = standing
    guard ledger != nil || global != nil else { return }
    if !(await controlIsCurrent()) {
      return await recover(bucket: buckets.control, knownEpoch: open[buckets.control] ?? 0)
    }
    do {
      if let ledger {
        let config = try await ledger.globalConfig()
        if config.version > standing, let epoch = open[buckets.control] {
          try await store.restoreGlobal(config, epoch: epoch)
          logger.notice(
            "global configuration restored", metadata: ["version": "\(config.version)"])
          standing = config.version
          Task { await self.restoreCatalogs(config) }
        }
      }
      if let global, global.version > standing {
        try await putBack(global, over: standing)
        logger.notice(
          "global configuration put back", metadata: ["version": "\(global.version)"])
      }
      await refresh()
    } catch {
      logger.warning("global configuration not restored", metadata: ["error": "\(error)"])
    }
  }

  /// Writes what is in force here over an older version; compared and set, so that of several only
  /// one does. The ledger gets it as a change of its own.
  func putBack(_ global: GlobalConfig, over standing: Int64) async throws {
    let bucket = buckets.control
    guard let epoch = open[bucket] else { return }
    let json = global.document.json()
    let catalog = (global.catalogVersion, global.catalog.document.json())
    guard ledger != nil else {
      return try await store.restoreGlobal(
        LedgerConfig(version: global.version, document: json, memory: ChangeMemory()),
        epoch: epoch, catalog: (number: catalog.0, json: catalog.1))
    }
    var generator = SystemRandomNumberGenerator()
    let id = OperationID(time: store.wallTime(), using: &generator)
    let body = ConfigDelta(
      scope: .global, key: "", version: global.version, action: "config.restore",
      actor: "sidecar \(configuration.sidecarID)",
      reason: "in force here, and lost by Redis before the ledger had it", before: "", after: json
    ).encode()
    let call = ConfigGlobalCall(
      keySpace: store.keys, fence: try await store.fence(bucket: bucket, epoch: epoch),
      change: ChangeKey(operation: id, fingerprint: 0), expectedVersion: standing,
      newVersion: global.version, config: json, catalog: catalog, body: body,
      outboxEntriesMax: configuration.storeLimits.outboxEntriesMax)
    guard case .done(let done) = call.decode(try await store.raw(call)) else { return }
    retainConfig(
      OutboxEntry(
        sequence: done.position.sequence, kind: .config, id: DeltaID(change: id),
        time: done.time, actual: 0, charged: 0, absorbed: 0, body: body),
      bucket: bucket, epoch: done.position.epoch)
  }

  /// The catalogs that can be shown and rolled back to, as far as Redis keeps them: the ledger has
  /// each in the change that made it.
  func restoreCatalogs(_ config: LedgerConfig) async {
    guard let ledger else { return }
    var found: Set<Int64> = []
    var cursor: String?
    do {
      repeat {
        let question = Document.fields([
          "scope": .string("global"), "count": .integer(10),
          "cursor": cursor.map { .string($0) },
        ])
        let pages = try await ledger.pages(
          QueryRequest(.configHistory, body: question.jsonBytes()), as: QueryReply.self)
        guard pages.first?.status == nil, let answer = try? Document(json: pages.flatMap(\.body))
        else { return }
        for change in answer["changes"]?.elements ?? [] {
          guard let text = change["after"]?.text, let document = try? Document(json: text),
            let past = try? GlobalConfig(document: document),
            found.insert(past.catalogVersion).inserted, let epoch = open[buckets.control]
          else { continue }
          try await store.restoreGlobal(
            config, epoch: epoch,
            catalog: (past.catalogVersion, past.catalog.document.json()))
        }
        cursor = answer["next"]?.text
      } while cursor != nil && found.count < ConfigGlobalCall.catalogsKept
    } catch {
      logger.warning("catalogs not restored", metadata: ["error": "\(error)"])
    }
  }

  func controlIsCurrent() async -> Bool {
    guard let meta = try? await store.meta(bucket: buckets.control),
      let identity = await store.identity()
    else { return false }
    return isCurrent(meta, identity) && meta.fence.epoch == open[buckets.control]
  }
}
