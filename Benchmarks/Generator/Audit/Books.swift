// All counters of a run's subjects, as Redis holds them at one moment.

import TollgateCore

/// A counter by name.
package struct CellName: Sendable, Hashable, Comparable {
  package var owner: String
  package var feature: String
  package var window: String

  package static func < (a: CellName, b: CellName) -> Bool {
    (a.feature, a.window, a.owner) < (b.feature, b.window, b.owner)
  }
}

package struct RedisBooks: Sendable {
  package var counters: [CellName: CounterReading] = [:]
  /// Wall time of the reading in milliseconds.
  package var time: Int64 = 0

  package init() {}

  /// Reads the counters of every account, and of every member, of the names given. Absent ones
  /// are absent here: nothing was ever counted, or nothing is loaded under this epoch.
  package init(
    reading redis: RedisReader, deployment: String, names: SubjectNames, features: Set<String>
  ) throws {
    time = Clocks.wallMilliseconds()
    let record = "tollgate:{\(deployment)}:deployment"
    let buckets = try redis.command(["HGET", record, "buckets"])
    // One that was just started says that it is still loading.
    try redis.require(buckets)
    guard let count = buckets.text.flatMap({ Int($0) }), count >= 1, count <= Deployment.bucketsMax
    else { throw BenchError("Redis has no deployment \(deployment)") }
    let map = BucketMap(buckets: count)
    var owners: [String] = []
    var commands: [[String]] = []
    func flush() throws {
      let values = try redis.pipeline(commands)
      for (owner, value) in zip(owners, values) { try take(owner, value, features) }
      owners.removeAll(keepingCapacity: true)
      commands.removeAll(keepingCapacity: true)
    }
    for account in 0..<names.accounts {
      let name = names.account(account)
      let tag = map.tags[map.bucket(ofAccount: name)]
      let prefix = "tg\(Deployment.keyVersion):\(deployment):{\(tag)}:a:"
      for owner in [name] + (0..<names.members).map({ names.path(account * names.members + $0) }) {
        owners.append(owner)
        commands.append(["HGETALL", prefix + owner])
      }
      if commands.count >= 1024 { try flush() }
    }
    try flush()
  }

  private mutating func take(_ owner: String, _ value: RESPValue, _ features: Set<String>) throws {
    guard case .list(let flat) = value else {
      throw BenchError("Redis: the counters of \(owner) cannot be read")
    }
    for index in stride(from: 0, to: flat.count - 1, by: 2) {
      guard let field = flat[index].text, let bar = field.firstIndex(of: "|") else { continue }
      let feature = String(field[..<bar])
      guard features.contains(feature), case .bytes(let bytes) = flat[index + 1] else { continue }
      guard let reading = CounterReading(bytes) else {
        throw BenchError("Redis: counter \(field) of \(owner) is not seven numbers")
      }
      let window = String(field[field.index(after: bar)...])
      counters[CellName(owner: owner, feature: feature, window: window)] = reading
    }
  }
}
