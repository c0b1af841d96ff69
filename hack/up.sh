#!/usr/bin/env bash
# The main job, told as it happens: a cloud and two sites on this machine, a shop
# in each out of one manifest, site west cut off its cloud, a node of it without
# power for a moment, and nothing lost.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
export SKERRY_SANDBOX_ROOT=${SKERRY_SANDBOX_ROOT:-$OUT/sandbox}
export PATH="$BIN:$PATH"
export KUBECONFIG=$SKERRY_SANDBOX_ROOT/default/kubeconfig

say() { printf '\n\033[1m[%3d s] %s\033[0m\n' "$SECONDS" "$*"; }
show() { printf '  $ %s\n' "$*"; "$@" | sed 's/^/    /'; }
fail() { printf '\nup: %s\n' "$*" >&2; echo "up: the sandbox is left running for a look: skerry sandbox status; make down removes it" >&2; exit 1; }

trap 'fail "interrupted, or the command in line $LINENO failed"' ERR INT TERM

# How long the link stays down: upstream's node monitor grace period (50 s), the
# pods' toleration (15 s), the monitor's own period (5 s), and a margin.
CUT_SECONDS=80

say "Starting a cloud and two sites of two nodes each"
skerry sandbox create --name default || exit 1
skerry sandbox load "$OUT/$ARCH/images/test/agnhost.tar" --site east
skerry sandbox load "$OUT/$ARCH/images/test/agnhost.tar" --site west

say "Deploying a shop in every site, out of one manifest: web, queue, database, and a customer"
show kubectl apply -k cluster/examples/shop
for grid in web ssg/queue ssg/db client; do
	skerry grid status "$grid" --watch --timeout 180s >/dev/null || fail "$grid did not become ready: skerry grid status $grid"
done
show kubectl get dg,ssg,sg
show kubectl get pods -L skerry.dev/grid-site -o wide
in_west=skerry.dev/grid-site=west
uids() { kubectl get pods -l "$in_west" -o jsonpath='{range .items[*]}{.metadata.uid}{"\n"}{end}' | sort; }
pods_before=$(uids)
client_node=$(kubectl get pods -l "$in_west,tier=client" -o jsonpath='{.items[0].spec.nodeName}')

# What the client in west wrote, read on its own node: the cloud cannot be asked.
client_log() { skerry sandbox exec "$client_node" -- sh -c 'cat /var/log/pods/default_client-west-*/client/*.log'; }
# served_since T counts "served" and "not served" lines after second T.
served_since() { client_log | awk -v t="$1" '$2 == "stdout" && $4 >= t { if ($5 == "served") s++; else n++ } END { printf "%d served, %d not served", s, n }'; }

for ((i = 0; i < 60; i++)); do
	[[ $(client_log | tail -n 1) == *" served by "* ]] && break
	sleep 0.5
done
show skerry sandbox exec "$client_node" -- sh -c 'tail -n 1 /var/log/pods/default_client-west-*/client/*.log'

say "Cutting site west off its cloud for $CUT_SECONDS s (upstream would mark its nodes after 50 s and evict 15 s later)"
show skerry sandbox link west --cut
cut_at=$(date +%s)
for ((left = CUT_SECONDS; left > 0; left -= 10)); do
	sleep $((left < 10 ? left : 10))
	printf '    %2d s left: %s\n' $((left > 10 ? left - 10 : 0)) "$(kubectl get nodes -L skerry.dev/site --no-headers | awk '{printf "%s=%s ", $1, $2}')"
done

say "What the cloud thinks now: west's nodes are NotReady, tainted NoSchedule only, and held"
show kubectl get nodes -L skerry.dev/site
show kubectl get nodes -l skerry.dev/site=west -o 'custom-columns=NODE:.metadata.name,TAINTS:.spec.taints[*].effect'
show kubectl get events --field-selector reason=NodeHeld -o 'custom-columns=NODE:.involvedObject.name,MESSAGE:.message'
taints=$(kubectl get nodes -l skerry.dev/site=west -o jsonpath='{range .items[*]}{.spec.taints[*].effect}{"\n"}{end}')
grep -q NoSchedule <<<"$taints" || fail "the nodes of west carry no NoSchedule taint: was the link really cut?"
! grep -q NoExecute <<<"$taints" || fail "a node of west carries a NoExecute taint: its pods are being evicted"

pods_after=$(uids)
[ "$pods_before" = "$pods_after" ] || fail "pods of west were evicted or replaced"
ready=$(kubectl get endpointslices -l kubernetes.io/service-name=web -o jsonpath='{.items[*].endpoints[*].conditions.ready}')
[ "$ready" = "true true true true" ] || fail "endpoints of web are no longer ready: $ready"
say "Nothing was evicted: the same pods as before, all endpoints ready"
show skerry grid status web
show kubectl get pods -l "$in_west" -o wide

served=$(served_since "$cut_at")
say "West's own client, read on its node, since the cut: $served"
[[ $served != 0\ served* && $served == *" 0 not served" ]] || fail "the client in west was not served all the time: $served"

say "Taking the power of $client_node, and giving it back, while its cloud is away"
show skerry sandbox poweroff "$client_node"
show skerry sandbox poweron "$client_node"
on_at=$(date +%s)
for ((i = 0; i < 120; i++)); do
	[[ $(served_since "$on_at") != 0\ served* ]] && break
	sleep 0.5
done
[[ $(served_since "$on_at") != 0\ served* ]] || fail "the client on $client_node did not run again within a minute: skerry sandbox logs $client_node kubelet"
say "Its pods run again, $(($(date +%s) - on_at)) s after the power came back, from what the node keeps itself: $(served_since "$on_at") since then"
show skerry sandbox exec "$client_node" -- skerry status

say "Healing the link"
show skerry sandbox link west --heal
kubectl wait --for=condition=Ready node --all --timeout=90s >/dev/null || fail "not every node became Ready again: kubectl get nodes"
show kubectl get nodes -L skerry.dev/site
pods_healed=$(uids)
[ "$pods_before" = "$pods_healed" ] || fail "pods of west were replaced after healing"

say "Done: site west was without its cloud for $(($(date +%s) - cut_at)) s, a node of it lost its power meanwhile, and nothing was lost"
cat <<EOT

The cluster is up. Try:
  export PATH=$BIN:\$PATH KUBECONFIG=$KUBECONFIG
  kubectl get nodes -L skerry.dev/site
  kubectl get dg,ssg,sg; skerry grid status web --watch
  skerry sandbox status
  skerry sandbox link east --delay 200ms --loss 10%
  skerry sandbox link east --cut; skerry sandbox reboot east-1; skerry sandbox exec east-1 -- skerry status
  skerry sandbox shell west-1
  skerry sandbox --help
make down removes every trace.
EOT
