// Shared by the suites: a scope with fake sidecars and a client in a private directory, and the
// short forms in which the transcripts of the pure machines are written.

import TollgateTesting
import TollgateWire

@testable import TollgateClient

struct Scene {
  let directory: TemporaryDirectory
  let sidecars: [FakeSidecar]
  let client: TollgateClient

  var sidecar: FakeSidecar { sidecars[0] }
}

/// Runs `body` with `count` sidecars that listen and a client that is welcomed.
func withScene(
  sidecars count: Int = 1, _ manners: FakeSidecar.Manners = FakeSidecar.Manners(),
  waits: Bool = true, configure: (inout ClientConfiguration) -> Void = { _ in },
  _ body: (Scene) async throws -> Void
) async throws {
  let directory = try TemporaryDirectory("tgc")
  let sidecars = (0..<count).map { FakeSidecar(directory.file("\($0).sock"), manners) }
  for sidecar in sidecars { try await sidecar.start() }
  var configuration = ClientConfiguration(endpoints: sidecars.map(\.endpoint))
  configuration.reconnectDelay = .milliseconds(1) ... .milliseconds(10)
  configuration.retryDelay = .milliseconds(1) ... .milliseconds(5)
  // Where a test is not about deadlines none may pass, however long the machine holds it up.
  configuration.defaultDeadline = .seconds(600)
  configuration.connectTimeout = .seconds(60)
  configuration.keepAlive = .seconds(600)
  configure(&configuration)
  let client = TollgateClient(configuration: configuration)
  client.start()
  if waits { try await client.waitUntilReady(within: .seconds(60)) }
  do {
    try await body(Scene(directory: directory, sidecars: sidecars, client: client))
  } catch {
    await client.shutdown(grace: .zero)
    for sidecar in sidecars { try? await sidecar.kill() }
    throw error
  }
  await client.shutdown(grace: .zero)
  for sidecar in sidecars { try? await sidecar.kill() }
}

/// Waits without holding a thread: the calls under test need it.
func until(_ what: String, _ condition: () throws -> Bool) async throws {
  // The oracles of other suites keep both cores busy for a minute.
  try await eventually(within: .seconds(60), what) { () async throws -> Bool in try condition() }
}

/// The result of a call, as a value.
func outcome(
  _ body: () async throws(TollgateError) -> Decision
) async -> Result<Decision, TollgateError> {
  do throws(TollgateError) { return .success(try await body()) } catch { return .failure(error) }
}

extension Result where Success == Decision, Failure == TollgateError {
  var reason: Reason? { if case .success(let decision) = self { decision.reason } else { nil } }
  var source: Source? { if case .success(let decision) = self { decision.source } else { nil } }
  var error: TollgateError? { if case .failure(let error) = self { error } else { nil } }
}

extension ClientMachine.Now {
  /// `milliseconds` after the start of a transcript.
  static func at(_ milliseconds: Int64) -> Self {
    Self(
      monotonic: MonotonicTime(nanoseconds: milliseconds * 1_000_000),
      wall: WallTime(milliseconds: 1_700_000_000_000 + milliseconds))
  }
}

/// An id minted at `at(0)`.
func operation(_ number: UInt64) -> OperationID {
  OperationID(high: 1_700_000_000_000 << 16, low: number)
}

func record(_ number: UInt64, _ items: Item..., subject path: String = "acme/ada") -> Record {
  Record(id: operation(number), subject: subject(path), items: items.isEmpty ? [item("a")] : items)
}

func makeWelcome(
  inFlightMax: UInt32 = 100, frameBytesMax: UInt32 = 65536, recordsMax: UInt32 = 1024,
  features: ProtocolFeatures = .reservations, _ policies: [String: FailurePolicy] = [:]
) -> Welcome {
  Welcome(
    role: .check, features: features, deployment: name("test"), sidecar: name("fake"),
    frameBytesMax: frameBytesMax, inFlightMax: inFlightMax, recordsMax: recordsMax,
    defaultDeadlineMilliseconds: 1000,
    maxDeadlineMilliseconds: 60_000, idleTimeoutMilliseconds: 0,
    time: WallTime(milliseconds: 1_700_000_000_000), globalVersion: 7,
    policies: policies.map { FeaturePolicy(feature: name($0.key), policy: $0.value) })
}

func decision(_ reason: Reason = .allowed, source: Source = .redis) -> Decision {
  Decision(reason: reason, source: source, time: WallTime(milliseconds: 1_700_000_000_000))
}
