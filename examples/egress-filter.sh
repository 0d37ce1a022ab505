#!/bin/sh
# The packet filter of the network `egress` (docs/nodes.md): run it as root on the node, at each boot, after the engine.
#
# sh egress-filter.sh [NAMESERVER]...   the name servers that the engine asks, where they are not this machine
#
# It rejects with "prohibited" and does not drop: a worker tries the network, and takes silence for a missing filter.
set -eu

bridge=jobqueue0
reject="REJECT --reject-with icmp-admin-prohibited"
# Besides private ranges: Azure answers machines about themselves at a public address.
private="0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.168.0.0/16
198.18.0.0/15 224.0.0.0/4 240.0.0.0/4 168.63.129.16/32"

iptables -N JOBQUEUE-EGRESS 2>/dev/null || iptables -F JOBQUEUE-EGRESS
for server in "$@"; do
  for kind in udp tcp; do
    iptables -A JOBQUEUE-EGRESS -d "$server" -p "$kind" --dport 53 -j RETURN
  done
done
for kind in udp tcp; do
  iptables -A JOBQUEUE-EGRESS -p "$kind" --dport 53 -j $reject
done
for range in $private; do
  iptables -A JOBQUEUE-EGRESS -d "$range" -j $reject
done

# Whatever goes through this machine, and whatever is for it.
iptables -C DOCKER-USER -i $bridge -j JOBQUEUE-EGRESS 2>/dev/null || iptables -I DOCKER-USER -i $bridge -j JOBQUEUE-EGRESS
iptables -C INPUT -i $bridge -j $reject 2>/dev/null || iptables -I INPUT -i $bridge -j $reject
if ip6tables -L INPUT >/dev/null 2>&1; then
  for chain in INPUT FORWARD; do
    ip6tables -C $chain -i $bridge -j DROP 2>/dev/null || ip6tables -I $chain -i $bridge -j DROP
  done
fi
