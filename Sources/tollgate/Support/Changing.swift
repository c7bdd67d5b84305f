// The frame around every change a command makes: the operation id is minted before the first send
// and named whenever the outcome is not known, so that running it again is safe.

import TollgateCore
import TollgateServer
import TollgateWire

enum Changing {
  static func send<Reply: Decodable & Sendable>(
    _ method: AdminMethod, _ request: some Encodable, id: OperationID?, as _: Reply.Type,
    over connection: ConnectionOptions
  ) async throws -> (reply: Reply, body: [UInt8]) {
    let server = try await connection.open()
    do throws(CommandFailure) {
      let answer = try await server.admin(method, request, as: Reply.self)
      await server.close()
      return answer
    } catch {
      await server.close()
      throw named(error, id)
    }
  }

  static func named(_ failure: CommandFailure, _ id: OperationID?) -> CommandFailure {
    var failure = failure
    if let id, failure.status == .outcomeUnknown || failure.status == .unavailable {
      failure.failure.fix = "run it again with --id \(id): it is applied once"
    }
    return failure
  }

  /// A change that answers with a plain `ChangeReply`.
  static func run(
    _ method: AdminMethod, _ request: some Encodable, _ options: ChangeOptions,
    _ connection: ConnectionOptions, _ output: OutputOptions
  ) async throws {
    let (reply, body) = try await send(
      method, request, id: options.operation, as: ChangeReply.self, over: connection)
    if output.json { Output.json(body) } else { Output.change(reply) }
  }

  /// A question that changes nothing.
  static func ask<Reply: Decodable & Sendable>(
    _ method: AdminMethod, _ request: some Encodable, as _: Reply.Type,
    over connection: ConnectionOptions
  ) async throws -> (reply: Reply, body: [UInt8]) {
    try await send(method, request, id: nil, as: Reply.self, over: connection)
  }
}
