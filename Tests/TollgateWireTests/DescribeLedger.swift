// The ledger stream's messages and the delta bodies as the `fields` of the vectors.

import NIOCore
import TollgateCore

@testable import TollgateWire

enum DescribeLedger {
  private static func deployment(_ d: Deployment) -> JSONValue {
    .object([
      "id": .text(d.id.text), "buckets": .init(d.buckets), "keyVersion": .init(d.keyVersion),
      "mode": .text(d.mode.rawValue), "hash": .text(d.hash),
    ])
  }

  static func link(_ m: Link) -> JSONValue {
    .object([
      "deployment": deployment(m.deployment), "sidecar": .text(m.sidecar.text),
      "incarnation": .init(m.incarnation),
    ])
  }

  static func linked(_ m: Linked) -> JSONValue {
    .object([
      "deployment": deployment(m.deployment),
      "buckets": .array(
        m.buckets.map {
          .object([
            "bucket": .init($0.bucket), "epoch": .init($0.epoch), "cursor": .init($0.cursor),
          ])
        }),
    ])
  }

  private static func entries(_ entries: [OutboxEntry]) -> JSONValue {
    .array(
      entries.map { entry in
        .object([
          "sequence": .init(entry.sequence), "kind": .init(entry.kind.rawValue),
          "index": .init(entry.id.index), "operation": .text(entry.id.operation.hex),
          "time": .init(entry.time.milliseconds), "actual": .init(entry.actual),
          "charged": .init(entry.charged), "absorbed": .init(entry.absorbed),
          "body": .text(Hex.text(entry.body)),
        ])
      })
  }

  static func batch(_ m: DeltaBatch) -> JSONValue {
    .object([
      "bucket": .init(m.bucket), "epoch": .init(m.epoch), "previous": .init(m.previous),
      "entries": entries(m.entries),
    ])
  }

  static func batchReply(_ m: BatchReply) -> JSONValue {
    .object([
      "status": .text("\(m.status)"), "bucket": .init(m.bucket), "epoch": .init(m.epoch),
      "cursor": .init(m.cursor), "lastSequence": .init(m.lastSequence),
      "duplicates": .array(
        m.duplicates.map {
          .object(["operation": .text($0.operation.hex), "index": .init($0.index)])
        }),
    ])
  }

  static func recover(_ m: Recover) -> JSONValue {
    .object([
      "bucket": .init(m.bucket), "epoch": .init(m.epoch), "metaEpoch": .init(m.metaEpoch),
      "metaSequence": .init(m.metaSequence),
    ])
  }

  static func presentRequest(_ m: PresentRequest) -> JSONValue {
    .object(["bucket": .init(m.bucket), "epoch": .init(m.epoch), "cursor": .init(m.cursor)])
  }

  static func present(_ m: Present) -> JSONValue {
    .object(["bucket": .init(m.bucket), "epoch": .init(m.epoch), "entries": entries(m.entries)])
  }

  static func epoch(_ m: EpochNotice) -> JSONValue {
    .object([
      "bucket": .init(m.bucket), "epoch": .init(m.epoch),
      "previousEpoch": .init(m.previousEpoch), "previousLast": .init(m.previousLast),
      "opener": .text(m.opener.text),
    ])
  }

  static func balances(_ m: BalancesRequest) -> JSONValue {
    .object(["account": .text(m.account.path), "since": .init(m.since.milliseconds)])
  }

  static func balancesReply(_ m: BalancesReply) -> JSONValue {
    .object([
      "account": .text(m.account.path), "version": .init(m.version),
      "config": .text(String(decoding: m.config, as: UTF8.self)),
      "balances": .array(
        m.balances.map {
          .object([
            "subject": .text($0.subject.path), "feature": .text($0.feature.text),
            "window": .text($0.window.code), "period": period($0.period),
            "settled": .init($0.settled), "forgiven": .init($0.forgiven),
          ])
        }),
    ])
  }

  static func config(_ m: ConfigRequest) -> JSONValue {
    .object(["account": .init(m.account?.path)])
  }

  static func configReply(_ m: ConfigReply) -> JSONValue {
    .object([
      "account": .init(m.account?.path), "version": .init(m.version),
      "document": .text(String(decoding: m.document, as: UTF8.self)),
    ])
  }

  static func period(_ period: Period) -> JSONValue {
    .object([
      "start": .init(period.start.milliseconds), "end": .init(period.end.milliseconds),
    ])
  }

  static func usage(_ body: UsageBody) -> JSONValue {
    var fields: [String: JSONValue] = [
      "subject": .text(body.subject.path), "feature": .text(body.feature.text),
      "period": period(body.period),
      "cells": .array(
        body.cells.map {
          .object([
            "level": .init($0.level), "window": .text($0.window.code), "period": period($0.period),
          ])
        }),
      "catalogVersion": .init(body.catalogVersion), "source": .text(body.source.name),
      "attributes": .object(body.attributes.mapValues { .text($0) }),
      "traceParent": .text(body.traceParent),
    ]
    fields.merge(DescribeReservations.extras(of: body)) { $1 }
    return .object(fields)
  }

  static func configDelta(_ delta: ConfigDelta) -> JSONValue {
    .object([
      "scope": .text(delta.scope.rawValue), "key": .text(delta.key),
      "version": .init(delta.version), "action": .text(delta.action),
      "actor": .text(delta.actor), "reason": .text(delta.reason), "before": .text(delta.before),
      "after": .text(delta.after),
    ])
  }
}
