// Reads cases from standard input, one JSON line each, and writes what the simulator decides, one line each.
//
// The core is called as the package's own runUnsafeSimulation calls it, which passes no session policy on and gives that of
// the resource no name, without which it falls over.
import { createInterface } from 'node:readline'
import { loadPolicy } from '@cloud-copilot/iam-policy'
import { DiscoveryContextKeyConstraints } from './node_modules/@cloud-copilot/iam-simulate/dist/esm/context_keys/discoveryContextKeyConstraints.js'
import { authorize } from './node_modules/@cloud-copilot/iam-simulate/dist/esm/core_engine/CoreSimulatorEngine.js'
import { AwsRequestImpl } from './node_modules/@cloud-copilot/iam-simulate/dist/esm/request/request.js'
import { RequestContextImpl } from './node_modules/@cloud-copilot/iam-simulate/dist/esm/requestContext.js'

const read = (policies) => policies.map((policy, number) => loadPolicy(policy, { name: `p${number}` }))

for await (const line of createInterface({ input: process.stdin })) {
  const { action, resource, principal, values, policies } = JSON.parse(line)
  const boundaries = read(policies.boundary)
  const { result } = authorize({
    request: new AwsRequestImpl(
      principal,
      { resource, accountId: '123456789012' },
      action,
      new RequestContextImpl(values),
    ),
    sessionPolicy: read(policies.session)[0],
    identityPolicies: read(policies.identity),
    serviceControlPolicies: [],
    resourceControlPolicies: [],
    resourcePolicy: read(policies.resource)[0],
    permissionBoundaries: boundaries.length ? boundaries : undefined,
    vpcEndpointPolicies: undefined,
    simulationParameters: {
      simulationMode: 'Strict',
      discoveryContextKeyConstraints: new DiscoveryContextKeyConstraints([]),
    },
  })
  console.log(result)
}
