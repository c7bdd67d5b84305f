// What every client connection of one event loop shares.

import Glibc
import Logging
import NIOCore
import TollgateCore
import TollgateEngine
import TollgateWire

/// Answers one admin request: method number and JSON in, status and JSON out.
typealias AdminHandler =
  @Sendable (_ method: UInt16, _ body: [UInt8], _ caller: AdminCaller) async
  -> Result<[UInt8], AdminError>

/// What a hello proved: the role it earns, and who that is as far as it can be known.
struct SessionIdentity: Hashable, Sendable {
  var role: Role
  /// E.g. `credential ann, uid 1000`: which credential, and on the Unix socket which user.
  var proof: String
}

struct AdminError: Error, Sendable {
  var code: ErrorCode
  /// A JSON document: an `AdminErrorReply`.
  var body: [UInt8]

  init(code: ErrorCode, body: [UInt8]) {
    self.code = code
    self.body = body
  }

  init(code: ErrorCode, message: String) {
    self.init(AdminFailure(code, message))
  }
}

final class SessionContext {
  let enforcer: Enforcer
  let configuration: ServerConfiguration
  let buckets: BucketMap
  let flusher: LoopFlusher
  let intake: Intake
  /// For what other threads hand over.
  let breather: Breather
  let admin: AdminDesk
  let logger: Logger
  /// Conversations whose sockets are on local loops.
  private(set) lazy var local = LocalDesk(self)
  private var sessions: [ObjectIdentifier: Conversation] = [:]
  /// What every session was told of failure policies, and the configuration it came from.
  private var told: (version: Int64, policies: [FeaturePolicy], scoped: [Name]) = (0, [], [])
  private(set) var draining = false
  /// The policies that every client of this loop was told, and the configuration they are from.

  init(
    enforcer: Enforcer, configuration: ServerConfiguration, buckets: BucketMap,
    admin: AdminDesk, logger: Logger
  ) {
    self.enforcer = enforcer
    self.configuration = configuration
    self.buckets = buckets
    self.admin = admin
    self.logger = logger
    flusher = LoopFlusher(eventLoop: enforcer.eventLoop)
    let breather = Breather(eventLoop: enforcer.eventLoop)
    self.breather = breather
    enforcer.onReply = { [weak breather] in breather?.cameRound() }
    let intake = Intake(enforcer: enforcer, breather: breather)
    self.intake = intake
    enforcer.onRoom = { [weak intake] in intake?.roomCame() }
  }

  var count: Int { sessions.count }

  func opened(_ session: Conversation) {
    sessions[ObjectIdentifier(session)] = session
    enforcer.metrics.connections.add(1)
  }

  func closed(_ session: Conversation) {
    if sessions.removeValue(forKey: ObjectIdentifier(session)) != nil {
      enforcer.metrics.connections.add(-1)
    }
  }

  func timePassed() {
    refreshPolicies()
    for session in sessions.values { session.timePassed() }
  }

  /// Tells every session of changed failure policies: what a client does when this sidecar is gone
  /// must be what was last configured, not what was in force when the connection was made.
  func refreshPolicies() {
    guard let global = enforcer.global, global.version != told.version else { return }
    let policies = Self.policies(of: global.catalog)
    let scoped = global.catalog.features.filter { $0.value.idempotency == .sidecar }.keys.sorted()
    let changed = policies != told.policies || scoped != told.scoped
    told = (global.version, policies, scoped)
    if changed { for session in sessions.values { session.policiesChanged() } }
  }

  /// Stops accepting work; connections end as their last answer is written.
  func drain() {
    draining = true
    for session in sessions.values { session.drain() }
  }

  func closeAll() {
    for session in sessions.values { session.closeNow() }
  }

  /// Who a credential stands for; nil where it is none.
  func identity(token: String, peerUID: UInt32?) -> SessionIdentity? {
    var found: (role: Role, name: String)?
    // Every credential is looked at, whichever fits, so that time tells nothing.
    if let admin = configuration.adminToken, equal(token, admin) { found = (.admin, "admin") }
    for (name, secret) in configuration.namedAdmins where equal(token, secret) {
      found = (.admin, name.text)
    }
    if found == nil, let check = configuration.checkToken, equal(token, check) {
      found = (.check, "check")
    }
    if let found {
      let user = peerUID.map { ", uid \($0)" } ?? ""
      return SessionIdentity(role: found.role, proof: "credential \(found.name)\(user)")
    }
    guard token.isEmpty, let peerUID,
      peerUID == getuid() || configuration.peerUIDs.contains(peerUID)
    else { return nil }
    return SessionIdentity(role: .check, proof: "uid \(peerUID)")
  }

  /// Looks at every byte whatever the first difference, so that time tells nothing.
  private func equal(_ a: String, _ b: String) -> Bool {
    let a = Array(a.utf8)
    let b = Array(b.utf8)
    var difference = UInt8(a.count == b.count ? 0 : 1)
    for index in b.indices { difference |= b[index] ^ (index < a.count ? a[index] : 0) }
    return difference == 0
  }

  /// Each feature's failure policy as a client must apply it when this sidecar is gone: the
  /// strictest of the hard limits of every plan, because a client does not know the plan. It is
  /// what all sessions have been told.
  var policies: [FeaturePolicy] { told.policies }

  /// Features whose operations only the sidecar knows that was asked first, as they were told of.
  var sidecarFeatures: [Name] { told.scoped }

  private static func policies(of catalog: Catalog) -> [FeaturePolicy] {
    catalog.features.keys.sorted().map { feature in
      var strictest: FailurePolicy?
      for plan in catalog.plans.values {
        for limit in plan.entitlements[feature] ?? [] where limit.enforcement == .hard {
          strictest = Self.stricter(strictest, limit.failurePolicy)
        }
      }
      return FeaturePolicy(feature: feature, policy: strictest ?? .closed)
    }
  }

  private static func stricter(_ a: FailurePolicy?, _ b: FailurePolicy) -> FailurePolicy {
    switch (a, b) {
    case (nil, let b): b
    case (.closed?, _), (_, .closed): .closed
    case (.stale?, _), (_, .stale): .stale
    case (.open(let x)?, .open(let y)): .open(allowance: min(x, y))
    }
  }
}

/// A session context, held anywhere and reached on its event loop.
struct SessionUnit: Sendable {
  let eventLoop: any EventLoop
  private let bound: NIOLoopBound<SessionContext>

  /// On the event loop.
  init(_ context: SessionContext, on eventLoop: any EventLoop) {
    self.eventLoop = eventLoop
    bound = NIOLoopBound(context, eventLoop: eventLoop)
  }

  /// On the event loop.
  var value: SessionContext { bound.value }

  func onLoop(_ body: @escaping @Sendable (SessionContext) -> Void) {
    let bound = bound
    eventLoop.execute { body(bound.value) }
  }
}
